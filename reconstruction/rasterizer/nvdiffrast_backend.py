"""The CUDA back end: nvdiffrast behind the `Rasterizer` interface.

nvdiffrast is never installed with scan2twin: its licence allows non-commercial use only, so whoever may use it installs
it. It is imported when this back end is asked for and not before.
"""

from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from scan2twin.errors import ConfigError

_INSTALL = (
    "install it with `pip install --no-build-isolation git+https://github.com/NVlabs/nvdiffrast` beside a CUDA build "
    "of torch (NVIDIA Source Code License: research and evaluation only), or choose the numba rasteriser"
)


def _import_nvdiffrast() -> ModuleType:
    try:
        import nvdiffrast.torch
    except ImportError as error:
        raise ConfigError(f"rasterizer nvdiffrast: cannot be imported ({error}); {_INSTALL}") from error
    module: ModuleType = nvdiffrast.torch
    return module


class NvdiffrastRasterizer:
    """`Rasterizer` on a CUDA device; see the protocol for the meaning of every argument."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ConfigError(f"rasterizer nvdiffrast: works on cuda devices only, got {device}; choose numba")
        self._nvdiffrast = _import_nvdiffrast()
        self._context = self._nvdiffrast.RasterizeCudaContext(device=device)

    def rasterize(self, clip_positions: Tensor, triangles: Tensor, resolution: tuple[int, int]) -> Tensor:
        """Find the visible triangle of every pixel: (B, H, W, 4)."""
        rast, _ = self._nvdiffrast.rasterize(
            self._context, clip_positions.contiguous(), triangles.contiguous(), resolution, grad_db=False
        )
        return _as_tensor(rast)

    def interpolate(self, attributes: Tensor, rast: Tensor, triangles: Tensor) -> Tensor:
        """Interpolate vertex attributes: (B, H, W, C)."""
        out, _ = self._nvdiffrast.interpolate(attributes.contiguous(), rast.contiguous(), triangles.contiguous())
        return _as_tensor(out)

    def texture(
        self,
        texture: Tensor,
        uv: Tensor,
        uv_da: Tensor | None = None,
        mip_level: Tensor | None = None,
        filter_mode: Literal["linear", "linear-mipmap-linear"] = "linear",
        boundary_mode: Literal["wrap", "clamp", "cube"] = "wrap",
    ) -> Tensor:
        """Sample a texture: (B, H, W, C)."""
        out = self._nvdiffrast.texture(
            texture.contiguous(),
            uv.contiguous(),
            uv_da=None if uv_da is None else uv_da.contiguous(),
            mip_level_bias=None if mip_level is None else mip_level.contiguous(),
            filter_mode=filter_mode,
            boundary_mode=boundary_mode,
        )
        return _as_tensor(out)

    def antialias(
        self, color: Tensor, rast: Tensor, clip_positions: Tensor, triangles: Tensor, topology: Any = None
    ) -> Tensor:
        """Blend colours across silhouettes: (B, H, W, C)."""
        out = self._nvdiffrast.antialias(
            color.contiguous(),
            rast.contiguous(),
            clip_positions.contiguous(),
            triangles.contiguous(),
            topology_hash=topology,
        )
        return _as_tensor(out)

    def build_topology(self, triangles: Tensor) -> Any:
        """Build nvdiffrast's edge hash."""
        return self._nvdiffrast.antialias_construct_topology_hash(triangles.contiguous())


def _as_tensor(value: Any) -> Tensor:
    """Give nvdiffrast's untyped results their type."""
    tensor: Tensor = value
    return tensor

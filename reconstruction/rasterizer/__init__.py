"""Differentiable rasterisation behind one interface: numba on the CPU, nvdiffrast on CUDA.

The four operations and their conventions are those of Laine et al. 2020, "Modular Primitives for High-Performance
Differentiable Rendering": clip-space input, `(u, v, z/w, triangle_id + 1)` output, image row 0 at the bottom.

    rasterizer = get_rasterizer("auto", torch.device("cpu"))
    rast = rasterizer.rasterize(clip_positions, triangles, (height, width))
    color = rasterizer.interpolate(vertex_colors, rast, triangles)
    image = rasterizer.antialias(color, rast, clip_positions, triangles)
"""

import importlib.util
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from scan2twin.errors import ConfigError

RasterizerName = Literal["auto", "numba", "nvdiffrast"]


class Rasterizer(Protocol):
    """Differentiable rasterisation of triangle meshes. Tensors are float32, triangles int32, on one device."""

    def rasterize(self, clip_positions: Tensor, triangles: Tensor, resolution: tuple[int, int]) -> Tensor:
        """Find the visible triangle of every pixel (Laine et al. 2020, section 3.2).

        Args:
            clip_positions: (B, V, 4) homogeneous clip-space positions (x, y, z, w), visible for -w <= x, y, z <= w.
            triangles: (T, 3) vertex indices; both sides are drawn.
            resolution: (height, width) in pixels.

        Returns:
            (B, H, W, 4): barycentric weights u and v of the first and second vertex (perspective-correct), depth
            z/w in [-1, 1], and triangle index + 1; all zero where nothing is seen. Row 0 is the bottom (y = -1).
            Gradients flow from u and v to `clip_positions`; z/w and the index carry none.

        """
        ...

    def interpolate(self, attributes: Tensor, rast: Tensor, triangles: Tensor) -> Tensor:
        """Interpolate vertex attributes (B or 1, V, C) at every pixel to (B, H, W, C); zero where nothing is seen.

        Gradients flow to `attributes` and, through u and v, to the clip positions (section 3.3).
        """
        ...

    def texture(
        self,
        texture: Tensor,
        uv: Tensor,
        uv_da: Tensor | None = None,
        mip_level: Tensor | None = None,
        filter_mode: Literal["linear", "linear-mipmap-linear"] = "linear",
        boundary_mode: Literal["wrap", "clamp", "cube"] = "wrap",
    ) -> Tensor:
        """Sample a texture (section 3.4).

        Args:
            texture: (B or 1, Ht, Wt, C), row 0 at v = 0; for "cube" (B or 1, 6, N, N, C), faces +x -x +y -y +z -z
                laid out as in OpenGL.
            uv: (B, H, W, 2), one unit spans the texture; for "cube" (B, H, W, 3) directions of any length.
            uv_da: (B, H, W, 4) derivatives (du/dx, du/dy, dv/dx, dv/dy) a pixel, from `attribute_derivatives`; picks
                the mip level of "linear-mipmap-linear". Not for "cube".
            mip_level: (B, H, W) level, added to that of `uv_da` or used alone.
            filter_mode: bilinear, or trilinear between mip levels.
            boundary_mode: what lies outside [0, 1].

        Returns:
            (B, H, W, C). Gradients flow to `texture`, `uv` and the mip level.

        """
        ...

    def antialias(
        self, color: Tensor, rast: Tensor, clip_positions: Tensor, triangles: Tensor, topology: Any = None
    ) -> Tensor:
        """Blend colours (B, H, W, C) across silhouettes by coverage (section 3.5); same shape.

        This is the operation that makes visibility differentiable: gradients flow to `color` and `clip_positions`.
        `topology` is what `build_topology(triangles)` returned; it is built anew if not given.
        """
        ...

    def build_topology(self, triangles: Tensor) -> Any:
        """Build the edge adjacency that `antialias` needs; reusable while the triangles stay the same."""
        ...


def choose_device() -> torch.device:
    """Return where to reconstruct: CUDA where there is a GPU and nvdiffrast is installed, else the CPU."""
    if torch.cuda.is_available() and importlib.util.find_spec("nvdiffrast") is not None:
        return torch.device("cuda")
    return torch.device("cpu")


def get_rasterizer(name: RasterizerName, device: torch.device | str) -> Rasterizer:
    """Return the named back end for tensors on `device`; "auto" takes nvdiffrast on CUDA and numba on the CPU.

    Raises:
        ConfigError: the back end does not exist, is not installed, or cannot work on `device`.

    """
    if name not in get_args(RasterizerName):
        raise ConfigError(f"rasterizer: expected one of {', '.join(get_args(RasterizerName))}, got {name!r}")
    device = torch.device(device)
    if name == "nvdiffrast" or (name == "auto" and device.type == "cuda"):
        from reconstruction.rasterizer.nvdiffrast_backend import NvdiffrastRasterizer

        return NvdiffrastRasterizer(device)
    if device.type != "cpu":
        raise ConfigError(f"rasterizer numba: works on the cpu only, got {device}; choose nvdiffrast")
    from reconstruction.rasterizer.numba_backend import NumbaRasterizer

    return NumbaRasterizer()

"""The CPU back end: thin, checked entry points to the numba kernels."""

import torch
from torch import Tensor

from reconstruction.rasterizer.sampling import BoundaryMode, FilterMode, sample_texture
from reconstruction.rasterizer.silhouette import Antialias, build_topology
from reconstruction.rasterizer.visibility import Interpolate, Rasterize


class NumbaRasterizer:
    """`Rasterizer` on the CPU, single-threaded; see the protocol for the meaning of every argument."""

    def rasterize(self, clip_positions: Tensor, triangles: Tensor, resolution: tuple[int, int]) -> Tensor:
        """Find the visible triangle of every pixel: (B, H, W, 4)."""
        clip_positions = _checked("clip_positions", clip_positions, (None, None, 4))
        triangles = _checked_triangles(triangles, clip_positions.shape[1])
        rast: Tensor = Rasterize.apply(clip_positions, triangles, *resolution)  # type: ignore[no-untyped-call]
        return rast

    def interpolate(self, attributes: Tensor, rast: Tensor, triangles: Tensor) -> Tensor:
        """Interpolate vertex attributes: (B, H, W, C)."""
        attributes = _checked("attributes", attributes, (None, None, None))
        rast = _checked("rast", rast, (None, None, None, 4))
        triangles = _checked_triangles(triangles, attributes.shape[1])
        if attributes.shape[0] not in (1, rast.shape[0]):
            raise ValueError(f"attributes: batch {attributes.shape[0]} does not fit rast's batch {rast.shape[0]}")
        out: Tensor = Interpolate.apply(attributes, rast, triangles)  # type: ignore[no-untyped-call]
        return out

    def texture(
        self,
        texture: Tensor,
        uv: Tensor,
        uv_da: Tensor | None = None,
        mip_level: Tensor | None = None,
        filter_mode: FilterMode = "linear",
        boundary_mode: BoundaryMode = "wrap",
    ) -> Tensor:
        """Sample a texture or a cube map: (B, H, W, C)."""
        cube = boundary_mode == "cube"
        if cube and uv_da is not None:
            raise ValueError("uv_da: cube maps take their mip level from mip_level only")
        uv = _checked("uv", uv, (None, None, None, 3 if cube else 2))
        texture = _checked("texture", texture, (None, 6, None, None, None) if cube else (None, None, None, None))
        if texture.shape[0] not in (1, uv.shape[0]):
            raise ValueError(f"texture: batch {texture.shape[0]} does not fit uv's batch {uv.shape[0]}")
        if uv_da is not None:
            uv_da = _checked("uv_da", uv_da, (*uv.shape[:3], 4))
        if mip_level is not None:
            mip_level = _checked("mip_level", mip_level, tuple(uv.shape[:3]))
        return sample_texture(texture, uv, uv_da, mip_level, filter_mode, boundary_mode)

    def antialias(
        self,
        color: Tensor,
        rast: Tensor,
        clip_positions: Tensor,
        triangles: Tensor,
        topology: Tensor | None = None,
    ) -> Tensor:
        """Blend colours across silhouettes: (B, H, W, C)."""
        rast = _checked("rast", rast, (None, None, None, 4))
        color = _checked("color", color, (*rast.shape[:3], None))
        clip_positions = _checked("clip_positions", clip_positions, (rast.shape[0], None, 4))
        triangles = _checked_triangles(triangles, clip_positions.shape[1])
        opposite = build_topology(triangles) if topology is None else topology
        if opposite.shape != triangles.shape:
            raise ValueError(f"topology: made for {opposite.shape[0]} triangles, not for {triangles.shape[0]}")
        out: Tensor = Antialias.apply(color, rast, clip_positions, triangles, opposite)  # type: ignore[no-untyped-call]
        return out

    def build_topology(self, triangles: Tensor) -> Tensor:
        """Build the edge adjacency: (T, 3) int32."""
        return build_topology(_checked_triangles(triangles, 2**31 - 1))


def _checked(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    """Return `tensor` contiguous, after checking that it is float32 on the CPU with `shape` (None: any size)."""
    fits = tensor.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, tensor.shape, strict=True))
    if not fits or tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise ValueError(f"{name}: expected float32 {shape} on cpu, got {tensor.dtype} {tuple(tensor.shape)}")
    return tensor.contiguous()


def _checked_triangles(triangles: Tensor, vertices: int) -> Tensor:
    """Return `triangles` contiguous, after checking every index against `vertices`: kernels check no bounds."""
    if triangles.ndim != 2 or triangles.shape[1] != 3 or triangles.dtype != torch.int32:
        raise ValueError(f"triangles: expected int32 (T, 3), got {triangles.dtype} {tuple(triangles.shape)}")
    if triangles.numel():
        low, high = (int(bound) for bound in triangles.aminmax())
        if low < 0 or high >= vertices:
            raise ValueError(f"triangles: indices must lie in [0, {vertices}), got {low} to {high}")
    return triangles.contiguous()

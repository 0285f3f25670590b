"""The sampling of `reconstruction.rasterizer.sampling` in plain torch, for tensors on a GPU; gradients are torch's."""

import torch
from torch import Tensor


def sample_pyramid(
    pyramid: Tensor, levels: Tensor, coordinates: Tensor, level: Tensor | None, boundary_mode: str
) -> Tensor:
    """Sample a pyramid (B or 1, S, C) of levels (L, 3: offset, height, width) at (B, N, 2 or 3) coordinates.

    `level` (B, N) is the fractional mip level, None for level 0. Cube faces have borders. Returns (B, N, C).
    """
    if boundary_mode == "cube":
        face, s, t = _on_cube_face(coordinates)
    else:
        s, t = coordinates.nan_to_num(0.0, 0.0, 0.0).unbind(-1)
        face = torch.zeros_like(s, dtype=torch.long)
        if boundary_mode == "clamp":
            s, t = s.clamp(0, 1), t.clamp(0, 1)
        else:
            s, t = s - s.floor(), t - t.floor()
    if level is None:
        first = torch.zeros_like(face)
        return _bilinear(pyramid, levels[first], face, s, t, boundary_mode)
    level = level.clamp(0, len(levels) - 1)
    lower = level.detach().floor().long().clamp(max=max(len(levels) - 2, 0))
    upper = (lower + 1).clamp(max=len(levels) - 1)
    fraction = (level - lower)[..., None]
    below = _bilinear(pyramid, levels[lower], face, s, t, boundary_mode)
    return below + fraction * (_bilinear(pyramid, levels[upper], face, s, t, boundary_mode) - below)


def _on_cube_face(directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Face and position (s, t) in [0, 1] of directions (..., 3); OpenGL 4.6, table 8.19."""
    directions = directions.nan_to_num(0.0, 0.0, 0.0)
    axis = directions.detach().abs().argmax(dim=-1)
    normal = directions.gather(-1, axis[..., None])[..., 0]
    face = 2 * axis + (normal < 0)
    x, y, z = directions.unbind(-1)
    sign = torch.where(normal < 0, -1.0, 1.0)
    s = torch.where(axis == 0, -sign * z, torch.where(axis == 1, x, sign * x))
    t = torch.where(axis == 1, sign * z, -y)
    length = normal.abs().clamp_min(torch.finfo(normal.dtype).tiny)
    return face, 0.5 * s / length + 0.5, 0.5 * t / length + 0.5


def _bilinear(pyramid: Tensor, levels: Tensor, face: Tensor, s: Tensor, t: Tensor, boundary_mode: str) -> Tensor:
    """Sample each point's own level (B, N, 3: offset, height, width) bilinearly: (B, N, C)."""
    offset, height, width = levels.long().unbind(-1)
    x, y = s * width - 0.5, t * height - 0.5
    column, row = x.detach().floor().long(), y.detach().floor().long()
    if boundary_mode == "cube":
        column, row = torch.minimum(column, width - 1), torch.minimum(row, height - 1)
    fx, fy = (x - column)[..., None], (y - row)[..., None]
    batch = torch.arange(len(s), device=s.device)[:, None] if len(pyramid) > 1 else 0

    def texel(row: Tensor, column: Tensor) -> Tensor:
        if boundary_mode == "cube":
            index = (face * (height + 2) + row + 1) * (width + 2) + column + 1
        elif boundary_mode == "wrap":
            index = row % height * width + column % width
        else:
            index = torch.minimum(row.clamp_min(0), height - 1) * width + torch.minimum(column.clamp_min(0), width - 1)
        return pyramid[batch, offset + index]

    top = texel(row, column) * (1 - fx) + texel(row, column + 1) * fx
    bottom = texel(row + 1, column) * (1 - fx) + texel(row + 1, column + 1) * fx
    return top * (1 - fy) + bottom * fy

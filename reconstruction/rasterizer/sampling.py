"""Texture sampling with gradients: bilinear or trilinear, 2D or cube maps (Laine et al. 2020, section 3.4).

All mip levels lie one after another in one array, the *pyramid*, which torch builds by averaging 2 × 2 texels, so their
gradients are torch's business and the kernels see one flat list of texels. Cube faces get a border of one texel from
their neighbours: filtering then knows no seams.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from reconstruction.rasterizer.torch_sampling import sample_pyramid
from reconstruction.rasterizer.visibility import Floats, Ints

FilterMode = Literal["linear", "linear-mipmap-linear"]
BoundaryMode = Literal["wrap", "clamp", "cube"]

_WRAP, CLAMP, CUBE = 0, 1, 2
_BOUNDARY_CODES = {"wrap": _WRAP, "clamp": CLAMP, "cube": CUBE}


@njit(cache=True, nogil=True)
def cube_axes(x: float, y: float, z: float) -> tuple[int, int, float, int, float, int, float]:
    """Face of a direction and the signed axes on it: face, then (axis, sign) of s, of t and of the face's normal.

    Faces +x -x +y -y +z -z with the orientations of OpenGL 4.6, table 8.19.
    """
    ax, ay, az = abs(x), abs(y), abs(z)
    if ax >= ay and ax >= az:
        return (0, 2, -1.0, 1, -1.0, 0, 1.0) if x >= 0.0 else (1, 2, 1.0, 1, -1.0, 0, -1.0)
    if ay >= az:
        return (2, 0, 1.0, 2, 1.0, 1, 1.0) if y >= 0.0 else (3, 0, 1.0, 2, -1.0, 1, -1.0)
    return (4, 0, 1.0, 1, -1.0, 2, 1.0) if z >= 0.0 else (5, 0, -1.0, 1, -1.0, 2, -1.0)


@njit(cache=True, nogil=True)
def locate(coordinates: Floats, boundary: int) -> tuple[int, float, float]:
    """Face (0 for 2D) and position (s, t), one unit spanning the face. Coordinates that are not finite give 0."""
    if boundary == CUBE:
        face, s_axis, s_sign, t_axis, t_sign, n_axis, n_sign = cube_axes(coordinates[0], coordinates[1], coordinates[2])
        normal = coordinates[n_axis] * n_sign
        if not 0.0 < normal < np.inf:
            return 0, 0.5, 0.5
        s, t = coordinates[s_axis] * s_sign / normal, coordinates[t_axis] * t_sign / normal
        return face, 0.5 * s + 0.5, 0.5 * t + 0.5
    s, t = np.float64(coordinates[0]), np.float64(coordinates[1])
    if not (np.isfinite(s) and np.isfinite(t)):
        return 0, 0.0, 0.0
    if boundary == _WRAP:
        return 0, s - np.floor(s), t - np.floor(t)
    return 0, min(max(s, 0.0), 1.0), min(max(t, 0.0), 1.0)


@njit(cache=True, nogil=True)
def taps(
    levels: Ints, level: int, boundary: int, face: int, s: float, t: float
) -> tuple[int, int, int, int, np.float32, np.float32]:
    """Indices of the four texels round (s, t) in the pyramid, in order (row, column), and the fractions (x, y)."""
    offset, height, width = levels[level, 0], levels[level, 1], levels[level, 2]
    x, y = s * width - 0.5, t * height - 0.5
    column, row = int(np.floor(x)), int(np.floor(y))
    fx, fy = np.float32(x - column), np.float32(y - row)
    if boundary == CUBE:  # a border of one texel all round
        stride = width + 2
        # Rounding at the far edge may give column = width.
        column, row = min(column, width - 1), min(row, height - 1)
        first = offset + (face * (height + 2) + row + 1) * stride + column + 1
        return first, first + 1, first + stride, first + stride + 1, fx, fy
    next_column, next_row = column + 1, row + 1
    if boundary == _WRAP:
        column, next_column = column % width, next_column % width
        row, next_row = row % height, next_row % height
    else:
        column, next_column = max(column, 0), min(next_column, width - 1)
        row, next_row = max(row, 0), min(next_row, height - 1)
    return (
        offset + row * width + column,
        offset + row * width + next_column,
        offset + next_row * width + column,
        offset + next_row * width + next_column,
        fx,
        fy,
    )


@njit(cache=True, nogil=True)
def _split_level(level: Floats, b: int, n: int, levels: int) -> tuple[int, np.float32]:
    """Lower mip level and the fraction of the next one; level 0 where `level` is empty."""
    if level.shape[0] == 0 or not level[b, n] > np.float32(0.0):
        return 0, np.float32(0.0)
    if level[b, n] >= np.float32(levels - 1):
        return levels - 1, np.float32(0.0)
    lower = int(level[b, n])
    return lower, level[b, n] - np.float32(lower)


@njit(cache=True, nogil=True)
def _sample_forward(
    pyramid: Floats, levels: Ints, coordinates: Floats, level: Floats, boundary: int, out: Floats
) -> None:
    """Fill `out` (B, N, C), zero on entry. `pyramid` (B or 1, S, C), `levels` (L, 3): offset, height, width."""
    one = np.float32(1.0)
    for b in range(out.shape[0]):
        texels = pyramid[b if pyramid.shape[0] > 1 else 0]
        for n in range(out.shape[1]):
            face, s, t = locate(coordinates[b, n], boundary)
            lower, fraction = _split_level(level, b, n, levels.shape[0])
            for step in range(2):
                share = fraction if step == 1 else one - fraction
                if share == np.float32(0.0):
                    continue
                i00, i01, i10, i11, fx, fy = taps(levels, lower + step, boundary, face, s, t)
                w00, w01 = share * (one - fx) * (one - fy), share * fx * (one - fy)
                w10, w11 = share * (one - fx) * fy, share * fx * fy
                for c in range(out.shape[2]):
                    out[b, n, c] += (
                        w00 * texels[i00, c] + w01 * texels[i01, c] + w10 * texels[i10, c] + w11 * texels[i11, c]
                    )


@njit(cache=True, nogil=True)
def _sample_backward(
    pyramid: Floats,
    levels: Ints,
    coordinates: Floats,
    level: Floats,
    boundary: int,
    out_grad: Floats,
    pyramid_grad: Floats,
    coordinates_grad: Floats,
    level_grad: Floats,
) -> None:
    """Add to the gradients (shaped like what they belong to, zero on entry; no rows: not wanted)."""
    one, zero = np.float32(1.0), np.float32(0.0)
    for b in range(out_grad.shape[0]):
        source = b if pyramid.shape[0] > 1 else 0
        texels = pyramid[source]
        for n in range(out_grad.shape[1]):
            face, s, t = locate(coordinates[b, n], boundary)
            lower, fraction = _split_level(level, b, n, levels.shape[0])
            inside = level_grad.shape[0] > 0 and zero < level[b, n] < np.float32(levels.shape[0] - 1)
            gs, gt = zero, zero
            for step in range(2):
                share = fraction if step == 1 else one - fraction
                if share == zero and not (inside and step == 1):
                    continue
                i00, i01, i10, i11, fx, fy = taps(levels, lower + step, boundary, face, s, t)
                w00, w01, w10, w11 = (one - fx) * (one - fy), fx * (one - fy), (one - fx) * fy, fx * fy
                ds, dt, dot = zero, zero, zero
                for c in range(out_grad.shape[2]):
                    g = out_grad[b, n, c]
                    t00, t01, t10, t11 = texels[i00, c], texels[i01, c], texels[i10, c], texels[i11, c]
                    ds += g * ((one - fy) * (t01 - t00) + fy * (t11 - t10))
                    dt += g * ((one - fx) * (t10 - t00) + fx * (t11 - t01))
                    dot += g * (w00 * t00 + w01 * t01 + w10 * t10 + w11 * t11)
                    if pyramid_grad.shape[0] > 0:
                        g *= share
                        pyramid_grad[source, i00, c] += w00 * g
                        pyramid_grad[source, i01, c] += w01 * g
                        pyramid_grad[source, i10, c] += w10 * g
                        pyramid_grad[source, i11, c] += w11 * g
                gs += share * ds * np.float32(levels[lower + step, 2])
                gt += share * dt * np.float32(levels[lower + step, 1])
                if inside:
                    level_grad[b, n] += dot if step == 1 else -dot
            if coordinates_grad.shape[0] == 0:
                continue
            if boundary == CUBE:
                direction = coordinates[b, n]
                _, s_axis, s_sign, t_axis, t_sign, n_axis, n_sign = cube_axes(direction[0], direction[1], direction[2])
                normal = direction[n_axis] * n_sign
                if not 0.0 < normal < np.inf:
                    continue
                # s = (s_sign x_s / normal + 1) / 2, and so t.
                coordinates_grad[b, n, s_axis] += 0.5 * gs * s_sign / normal
                coordinates_grad[b, n, t_axis] += 0.5 * gt * t_sign / normal
                coordinates_grad[b, n, n_axis] -= n_sign * (gs * (s - 0.5) + gt * (t - 0.5)) / normal
            else:
                clamped = boundary == CLAMP
                u, v = coordinates[b, n, 0], coordinates[b, n, 1]
                coordinates_grad[b, n, 0] = zero if clamped and not zero < u < one else gs
                coordinates_grad[b, n, 1] = zero if clamped and not zero < v < one else gt


class _Sample(torch.autograd.Function):
    """Sample a pyramid at (B, N, 2 or 3) coordinates and (B, N) levels (or an empty tensor: level 0)."""

    @staticmethod
    def forward(ctx: Any, pyramid: Tensor, levels: Tensor, coordinates: Tensor, level: Tensor, boundary: int) -> Tensor:
        out = coordinates.new_zeros(*coordinates.shape[:2], pyramid.shape[2])
        _sample_forward(pyramid.numpy(), levels.numpy(), coordinates.numpy(), level.numpy(), boundary, out.numpy())
        ctx.save_for_backward(pyramid, levels, coordinates, level)
        ctx.boundary = boundary
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pyramid, levels, coordinates, level = ctx.saved_tensors
        grad_tensors = [
            torch.zeros_like(tensor) if wanted else None
            for tensor, wanted in zip(ctx.saved_tensors, ctx.needs_input_grad[:4], strict=True)
        ]
        pyramid_grad, _, coordinates_grad, level_grad = grad_tensors
        empty = pyramid.new_empty(0, 0, 0).numpy()
        _sample_backward(
            pyramid.numpy(),
            levels.numpy(),
            coordinates.numpy(),
            level.numpy(),
            ctx.boundary,
            grads[0].contiguous().numpy(),
            empty if pyramid_grad is None else pyramid_grad.numpy(),
            empty if coordinates_grad is None else coordinates_grad.numpy(),
            level.new_empty(0, 0).numpy() if level_grad is None else level_grad.numpy(),
        )
        return pyramid_grad, None, coordinates_grad, level_grad, None


@cache
def _border_sources(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the texels of bordered cube faces come from.

    Returns:
        Source (6 * (size + 2)²,) of every bordered texel among the 6 * size² of the faces (corners: any); positions
        (24,) of the corners; and the three texels (24, 3) that meet at each, whose mean it takes.

    """
    inner = np.arange(6 * size * size).reshape(6, size, size)
    bordered = np.pad(inner, ((0, 0), (1, 1), (1, 1)), mode="edge")
    centres = (np.arange(size) + 0.5) / size * 2 - 1
    outside = 1 + 1e-6  # just past the edge, where the neighbouring face takes over
    for face in range(6):
        for i, along in enumerate(centres):
            for (row, column), (s, t) in (
                ((0, i + 1), (along, -outside)),
                ((size + 1, i + 1), (along, outside)),
                ((i + 1, 0), (-outside, along)),
                ((i + 1, size + 1), (outside, along)),
            ):
                neighbour, s_there, t_there = locate(cube_direction(face, s, t), CUBE)
                there = (min(int(t_there * size), size - 1), min(int(s_there * size), size - 1))
                bordered[face, row, column] = inner[(neighbour, *there)]
    positions, meeting = [], []
    grid = np.arange(bordered.size).reshape(bordered.shape)
    for face in range(6):
        for row, column, dr, dc in ((0, 0, 1, 1), (0, -1, 1, -1), (-1, 0, -1, 1), (-1, -1, -1, -1)):
            positions.append(grid[face, row, column])
            corner = bordered[face, row + dr, column + dc]
            meeting.append([corner, bordered[face, row + dr, column], bordered[face, row, column + dc]])
    sources, corners, meetings = (torch.from_numpy(np.array(index)) for index in (bordered.ravel(), positions, meeting))
    return sources, corners, meetings


def cube_direction(face: int, s: float, t: float) -> NDArray[np.float64]:
    """Direction (3,) through (s, t) in [-1, 1]² of a cube face; not of unit length."""
    normal_axis, sign = face // 2, 1.0 - 2.0 * (face % 2)
    direction = np.zeros(3)
    direction[normal_axis] = sign
    _, s_axis, s_sign, t_axis, t_sign, _, _ = cube_axes(*direction)
    direction[s_axis], direction[t_axis] = s * s_sign, t * t_sign
    return direction


def _with_borders(faces: Tensor) -> Tensor:
    """Give cube faces (B, 6, N, N, C) their borders and lay them out flat: (B, 6 * (N + 2)², C)."""
    sources, corners, meeting = (index.to(faces.device) for index in _border_sources(faces.shape[2]))
    texels = faces.flatten(1, 3)
    # index_select, whose gradient adds rows, where indexing would sort them first.
    meeting_texels = texels.index_select(1, meeting.reshape(-1))
    corner = meeting_texels.reshape(len(texels), -1, 3, texels.shape[2]).mean(dim=2)
    return texels.index_select(1, sources).index_copy(1, corners, corner)


class Pyramid(NamedTuple):
    """Mip levels one after another, ready to be looked up many times; see `stack_levels`.

    texels (B or 1, S, C); levels (L, 3) int32: offset, height, width.
    """

    texels: Tensor
    levels: Tensor
    boundary_mode: BoundaryMode

    def sample(self, coordinates: Tensor, level: Tensor | None) -> Tensor:
        """Look up (B, N, 2) coordinates, one unit spanning the texture, or (B, N, 3) directions of any length.

        `level` (B, N) is the fractional index of a mip level, or None for level 0 alone. Returns (B, N, C), bilinear
        within a level and linear between levels.
        """
        if self.texels.device.type != "cpu":
            return sample_pyramid(self.texels, self.levels, coordinates, level, self.boundary_mode)
        no_level = coordinates.new_empty(0, 0)
        out: Tensor = _Sample.apply(  # type: ignore[no-untyped-call]
            self.texels,
            self.levels,
            coordinates.contiguous(),
            no_level if level is None else level.contiguous(),
            _BOUNDARY_CODES[self.boundary_mode],
        )
        return out


def stack_levels(mips: Sequence[Tensor], boundary_mode: BoundaryMode) -> Pyramid:
    """Lay mip levels of any sizes out to be sampled, level 0 first.

    `mips` are 2D levels (B or 1, H, W, C), or cube levels (B or 1, 6, N, N, C).
    """
    sizes = [mip.shape[-3:-1] for mip in mips]
    flat = [_with_borders(mip) if boundary_mode == "cube" else mip.flatten(1, 2) for mip in mips]
    offsets = np.cumsum([0] + [texels.shape[1] for texels in flat[:-1]])
    table = [(offset, *size) for offset, size in zip(offsets, sizes, strict=True)]
    levels = torch.tensor(table, dtype=torch.int32, device=flat[0].device)
    texels = flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)
    return Pyramid(texels.contiguous(), levels, boundary_mode)


def sample_levels(
    mips: Sequence[Tensor], coordinates: Tensor, level: Tensor | None, boundary_mode: BoundaryMode
) -> Tensor:
    """Sample mip levels given one by one, of any sizes: see `stack_levels` and `Pyramid.sample`."""
    return stack_levels(mips, boundary_mode).sample(coordinates, level)


def build_mips(texture: Tensor, cube: bool) -> list[Tensor]:
    """Halve a texture (B, H, W, C) or cube map (B, 6, N, N, C) by 2 × 2 means until a side is odd."""
    mips = [texture]
    while all(side % 2 == 0 for side in mips[-1].shape[-3:-1]):
        last = mips[-1]
        images = last.flatten(0, 1) if cube else last
        halved = torch.nn.functional.avg_pool2d(images.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        mips.append(halved.reshape(*last.shape[:2], *halved.shape[1:]) if cube else halved)
    return mips


def mip_level_from_derivatives(uv_da: Tensor, height: int, width: int) -> Tensor:
    """Mip level (...,) at which a pixel's longer axis spans one texel of a height × width texture.

    `uv_da` (..., 4) holds (du/dx, du/dy, dv/dx, dv/dy). With J the 2 × 2 Jacobian in texels, the level is log2 of its
    largest singular value; negative where the texture is magnified.
    """
    ux, uy, vx, vy = (uv_da * uv_da.new_tensor([width, width, height, height])).unbind(-1)
    xx, yy, xy = ux * ux + vx * vx, uy * uy + vy * vy, ux * uy + vx * vy
    largest = 0.5 * (xx + yy + torch.sqrt((xx - yy) ** 2 + 4 * xy**2 + 1e-20))
    return 0.5 * torch.log2(largest.clamp_min(1e-20))


def sample_texture(
    texture: Tensor,
    uv: Tensor,
    uv_da: Tensor | None,
    mip_level: Tensor | None,
    filter_mode: FilterMode,
    boundary_mode: BoundaryMode,
) -> Tensor:
    """`Rasterizer.texture` on the CPU; takes checked tensors."""
    coordinates = uv.flatten(1, 2)
    mips, level = [texture], None
    if filter_mode == "linear-mipmap-linear":
        if uv_da is not None:
            level = mip_level_from_derivatives(uv_da, texture.shape[-3], texture.shape[-2])
        if mip_level is not None:
            level = mip_level if level is None else level + mip_level
        if level is None:
            raise ValueError("texture: linear-mipmap-linear needs uv_da or mip_level")
        mips, level = build_mips(texture, boundary_mode == "cube"), level.flatten(1)
    return sample_levels(mips, coordinates, level, boundary_mode).reshape(*uv.shape[:3], texture.shape[-1])

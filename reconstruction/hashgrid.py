"""Multiresolution hash encoding (Müller et al. 2022, *Instant Neural Graphics Primitives*, §3).

On the CPU by numba kernels, strict float32 and uint32 throughout: a stray Python number would promote to float64 and
cost a factor of three to four. The backward pass is parallel over the levels, whose tables do not overlap, so
gradients are summed in a fixed order and a run repeats bit for bit. On other devices by torch alone.
"""

import math
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import nn

# Spatial hash primes, Müller et al. 2022, eq. 4.
_PRIME_Y = np.uint32(2_654_435_761)
_PRIME_Z = np.uint32(805_459_861)
_ONE = np.float32(1)
_ZERO = np.float32(0)


@njit(inline="always")
def _corner(x, y, z, side, mask):  # type: ignore[no-untyped-def]
    """Table slot of grid corner (x, y, z), all uint32; a level that fits the table is indexed directly."""
    if side > 0:
        return x + side * (y + side * z)
    return (x ^ (y * _PRIME_Y) ^ (z * _PRIME_Z)) & mask


@njit(inline="always")
def _cell(coordinate, scale):  # type: ignore[no-untyped-def]
    """Cell number and fraction of a coordinate in [0, 1]."""
    scaled = min(max(coordinate, _ZERO), _ONE) * scale
    cell = np.uint32(min(scaled, scale - np.float32(1e-3) * scale))
    return cell, scaled - np.float32(cell)


@njit(cache=True, parallel=True, nogil=True)
def _encode(points, table, scales, sides, out):  # type: ignore[no-untyped-def]
    n_levels, size, _ = table.shape
    mask = np.uint32(size - 1)
    one = np.uint32(1)
    for level in prange(n_levels):
        scale, side, entries = scales[level], sides[level], table[level]
        for i in range(len(points)):
            x, fx = _cell(points[i, 0], scale)
            y, fy = _cell(points[i, 1], scale)
            z, fz = _cell(points[i, 2], scale)
            a = _ZERO
            b = _ZERO
            for k in range(8):
                dx, dy, dz = np.uint32(k & 1), np.uint32(k >> 1 & 1), np.uint32(k >> 2)
                w = (fx if dx else _ONE - fx) * (fy if dy else _ONE - fy) * (fz if dz else _ONE - fz)
                slot = _corner(x + dx * one, y + dy * one, z + dz * one, side, mask)
                a += w * entries[slot, 0]
                b += w * entries[slot, 1]
            out[i, 2 * level] = a
            out[i, 2 * level + 1] = b


@njit(cache=True, parallel=True, nogil=True)
def _encode_backward(points, table, scales, sides, grad_out, grad_table, grad_points, want_points):  # type: ignore[no-untyped-def]
    n_levels, size, _ = table.shape
    mask = np.uint32(size - 1)
    for level in prange(n_levels):
        scale, side, entries, grad = scales[level], sides[level], table[level], grad_table[level]
        for i in range(len(points)):
            ga, gb = grad_out[i, 2 * level], grad_out[i, 2 * level + 1]
            x, fx = _cell(points[i, 0], scale)
            y, fy = _cell(points[i, 1], scale)
            z, fz = _cell(points[i, 2], scale)
            gx = _ZERO
            gy = _ZERO
            gz = _ZERO
            for k in range(8):
                dx, dy, dz = np.uint32(k & 1), np.uint32(k >> 1 & 1), np.uint32(k >> 2)
                wx = fx if dx else _ONE - fx
                wy = fy if dy else _ONE - fy
                wz = fz if dz else _ONE - fz
                slot = _corner(x + dx, y + dy, z + dz, side, mask)
                w = wx * wy * wz
                grad[slot, 0] += w * ga
                grad[slot, 1] += w * gb
                if want_points:
                    pull = entries[slot, 0] * ga + entries[slot, 1] * gb
                    gx += (pull if dx else -pull) * wy * wz
                    gy += (pull if dy else -pull) * wx * wz
                    gz += (pull if dz else -pull) * wx * wy
            if want_points:
                grad_points[level, i, 0] = gx * scale
                grad_points[level, i, 1] = gy * scale
                grad_points[level, i, 2] = gz * scale


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: torch.Tensor, table: torch.Tensor, scales: Any, sides: Any) -> torch.Tensor:
        ctx.save_for_backward(points, table)
        ctx.levels = (scales, sides)
        out = points.new_empty(len(points), 2 * len(table))
        _encode(points.detach().numpy(), table.detach().numpy(), scales, sides, out.numpy())
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> Any:
        points, table = ctx.saved_tensors
        want_points = bool(ctx.needs_input_grad[0])
        grad_table = torch.zeros_like(table)
        grad_points = points.new_empty(len(table), len(points) if want_points else 0, 3)
        _encode_backward(
            points.numpy(), table.detach().numpy(), *ctx.levels, grad_out.contiguous().numpy(),
            grad_table.numpy(), grad_points.numpy(), want_points,
        )  # fmt: skip
        return (grad_points.sum(0) if want_points else None), grad_table, None, None


def encode_torch(points: torch.Tensor, table: torch.Tensor, scales: Any, sides: Any) -> torch.Tensor:
    """Encode as the kernels do, by torch operations alone: for devices that numba does not reach."""
    corners = torch.tensor([[k & 1, k >> 1 & 1, k >> 2] for k in range(8)], device=points.device)
    features = []
    for entries, scale, side in zip(table, scales.tolist(), sides.tolist(), strict=True):
        scaled = points.clamp(0, 1) * scale
        cell = scaled.detach().clamp(max=scale * (1 - 1e-3)).floor()
        fraction = (scaled - cell)[:, None]
        weight = torch.where(corners == 1, fraction, 1 - fraction).prod(dim=2)
        x, y, z = (cell.long()[:, None] + corners).unbind(dim=2)
        hashed = (x ^ (y * int(_PRIME_Y)) ^ (z * int(_PRIME_Z))) & (len(entries) - 1)
        slot = x + side * (y + side * z) if side else hashed
        features.append((weight[..., None] * entries[slot]).sum(dim=1))
    return torch.cat(features, dim=1)


class HashGrid(nn.Module):
    """Trainable features on a pyramid of grids over the unit cube.

    Args:
        levels: number of grids, L of the paper; two features each.
        log2_entries: log2 of the hash table's entries a level, log2 T.
        coarsest: cells along a side of the coarsest grid, N_min.
        finest: cells along a side of the finest grid, N_max.
        generator: source of the initial values, uniform in ±1e-4 (paper, §4).

    """

    def __init__(
        self, levels: int, log2_entries: int, coarsest: int, finest: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        growth = math.exp(math.log(finest / coarsest) / max(levels - 1, 1))
        cells = [round(coarsest * growth**level) for level in range(levels)]
        entries = 1 << log2_entries
        self.scales = np.array(cells, np.float32)
        # (cells + 1)³ corners fit the table: index directly and waste no collisions on coarse grids.
        self.sides = np.array([n + 1 if (n + 1) ** 3 <= entries else 0 for n in cells], np.uint32)
        self.table = nn.Parameter((torch.rand(levels, entries, 2, generator=generator) * 2 - 1) * 1e-4)
        self.features = 2 * levels

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Return the features (N, 2·levels) float32 at points (N, 3) float32 in [0, 1]³, clamped to it.

        Gradients go to the table and, where asked for, to the points.
        """
        if points.device.type != "cpu":
            return encode_torch(points, self.table, self.scales, self.sides)
        encoded: torch.Tensor = _Encode.apply(points.contiguous(), self.table, self.scales, self.sides)  # type: ignore[no-untyped-call]
        return encoded

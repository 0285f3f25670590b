"""Z-buffer rasterisation and attribute interpolation on the CPU, with their gradients.

Triangles are rasterised in homogeneous coordinates (Olano and Greer 1997, "Triangle Scan Conversion using 2D
Homogeneous Coordinates"), so one that crosses the near plane or the eye needs no clipping: for pixel centre (X, Y)
and vertices p_i = (x_i, y_i, w_i) scaled to pixels,

    a_0(X, Y) = (p_1 - (X, Y) w_1) x (p_2 - (X, Y) w_2)   and cyclically,   a_0 w_0 + a_1 w_1 + a_2 w_2 = det,

the point is inside and in front of the eye when every a_i / det >= 0, its depth z/w is sum a_i z_i / det, and its
perspective-correct barycentric weights are a_i / sum a.

Kernels are single-threaded on purpose (a pass takes milliseconds, and binning for threads costs more CPU than it
saves) and release the GIL. Edge functions are evaluated in float64: at float32 two triangles that share an edge could
both miss a pixel on it.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
_Point = tuple[float, float, float, float]

# Slack of the inside test in barycentric units: far above float64 rounding, far below a visible fraction of a pixel.
_EDGE_SLACK = -1e-9


@njit(cache=True, nogil=True)
def _near_clipped_bounds(p0: _Point, p1: _Point, p2: _Point) -> tuple[float, float, float, float]:
    """Bounds in pixels of the part of a triangle beyond the near plane; vertices (x, y, z, w), x, y in pixels * w."""
    points = (p0, p1, p2)
    x_min, x_max, y_min, y_max = np.inf, -np.inf, np.inf, -np.inf
    for i in range(3):
        p, q = points[i], points[(i + 1) % 3]
        p_near, q_near = p[2] + p[3], q[2] + q[3]
        if p_near >= 0.0:
            if p[3] <= 0.0:  # behind the eye, yet before no near plane: no projection of ours; no bound
                return -np.inf, np.inf, -np.inf, np.inf
            x_min, x_max = min(x_min, p[0] / p[3]), max(x_max, p[0] / p[3])
            y_min, y_max = min(y_min, p[1] / p[3]), max(y_max, p[1] / p[3])
        if (p_near >= 0.0) != (q_near >= 0.0):
            s = p_near / (p_near - q_near)
            w = p[3] + s * (q[3] - p[3])
            if w <= 0.0:  # the near plane passes through the eye: no bound
                return -np.inf, np.inf, -np.inf, np.inf
            x, y = (p[0] + s * (q[0] - p[0])) / w, (p[1] + s * (q[1] - p[1])) / w
            x_min, x_max, y_min, y_max = min(x_min, x), max(x_max, x), min(y_min, y), max(y_max, y)
    return x_min, x_max, y_min, y_max


@njit(cache=True, nogil=True)
def _rasterize_forward(clip: Floats, triangles: Ints, rast: Floats) -> None:
    """Fill `rast` (B, H, W, 4), zero on entry; the nearer triangle wins, the lower index at equal depth."""
    batch, height, width, _ = rast.shape
    x_scale, x_offset = 0.5 * width, 0.5 * (width - 1)
    y_scale, y_offset = 0.5 * height, 0.5 * (height - 1)
    for b in range(batch):
        for t in range(triangles.shape[0]):
            v0, v1, v2 = clip[b, triangles[t, 0]], clip[b, triangles[t, 1]], clip[b, triangles[t, 2]]
            z0, z1, z2 = np.float64(v0[2]), np.float64(v1[2]), np.float64(v2[2])
            w0, w1, w2 = np.float64(v0[3]), np.float64(v1[3]), np.float64(v2[3])
            x0, y0 = v0[0] * x_scale + w0 * x_offset, v0[1] * y_scale + w0 * y_offset
            x1, y1 = v1[0] * x_scale + w1 * x_offset, v1[1] * y_scale + w1 * y_offset
            x2, y2 = v2[0] * x_scale + w2 * x_offset, v2[1] * y_scale + w2 * y_offset
            if z0 + w0 >= 0.0 and z1 + w1 >= 0.0 and z2 + w2 >= 0.0 and w0 > 0.0 and w1 > 0.0 and w2 > 0.0:
                sx0, sx1, sx2 = x0 / w0, x1 / w1, x2 / w2
                sy0, sy1, sy2 = y0 / w0, y1 / w1, y2 / w2
                x_min, x_max = min(sx0, sx1, sx2), max(sx0, sx1, sx2)
                y_min, y_max = min(sy0, sy1, sy2), max(sy0, sy1, sy2)
            else:
                x_min, x_max, y_min, y_max = _near_clipped_bounds((x0, y0, z0, w0), (x1, y1, z1, w1), (x2, y2, z2, w2))
            # Clamped before the conversion to int, which is undefined for huge values; not-a-number fails the test.
            x_min, x_max = max(np.ceil(x_min), 0.0), min(np.floor(x_max), width - 1.0)
            y_min, y_max = max(np.ceil(y_min), 0.0), min(np.floor(y_max), height - 1.0)
            if not (x_min <= x_max and y_min <= y_max):
                continue
            # Relative to the first pixel, so that the products below do not cancel.
            x0, x1, x2 = x0 - x_min * w0, x1 - x_min * w1, x2 - x_min * w2
            y0, y1, y2 = y0 - y_min * w0, y1 - y_min * w1, y2 - y_min * w2
            det = x0 * (y1 * w2 - y2 * w1) + y0 * (x2 * w1 - x1 * w2) + w0 * (x1 * y2 - x2 * y1)
            if not 0.0 < abs(det) < np.inf:
                continue
            scale = 1.0 / det
            a0x, a0y, a0c = (y1 * w2 - y2 * w1) * scale, (x2 * w1 - x1 * w2) * scale, (x1 * y2 - x2 * y1) * scale
            a1x, a1y, a1c = (y2 * w0 - y0 * w2) * scale, (x0 * w2 - x2 * w0) * scale, (x2 * y0 - x0 * y2) * scale
            a2x, a2y, a2c = (y0 * w1 - y1 * w0) * scale, (x1 * w0 - x0 * w1) * scale, (x0 * y1 - x1 * y0) * scale
            columns = int(x_max - x_min) + 1
            rows = int(y_max - y_min) + 1
            column0, row0 = int(x_min), int(y_min)
            for j in range(rows):
                r0, r1, r2 = a0c + j * a0y, a1c + j * a1y, a2c + j * a2y
                entered = False
                for i in range(columns):
                    a0, a1, a2 = r0 + i * a0x, r1 + i * a1x, r2 + i * a2x
                    if a0 < _EDGE_SLACK or a1 < _EDGE_SLACK or a2 < _EDGE_SLACK:
                        if entered:  # a row meets a triangle in one piece
                            break
                        continue
                    entered = True
                    depth = np.float32(a0 * z0 + a1 * z1 + a2 * z2)
                    if depth < np.float32(-1.0) or depth > np.float32(1.0):
                        continue
                    pixel = rast[b, row0 + j, column0 + i]
                    if pixel[3] != np.float32(0.0) and depth >= pixel[2]:
                        continue
                    a0, a1, a2 = max(a0, 0.0), max(a1, 0.0), max(a2, 0.0)
                    inverse = 1.0 / (a0 + a1 + a2)
                    pixel[0] = a0 * inverse
                    pixel[1] = a1 * inverse
                    pixel[2] = depth
                    pixel[3] = t + 1


@njit(cache=True, nogil=True)
def _rasterize_backward(clip: Floats, triangles: Ints, rast: Floats, rast_grad: Floats, clip_grad: Floats) -> None:
    """Add d(loss)/d(clip x, y, w) to `clip_grad` (B, V, 4) given d(loss)/d(u, v) in `rast_grad` (B, H, W, 4).

    In NDC: u = a_0 / s and v = a_1 / s with s = sum a, each a_i a cross product of vertices relative to the pixel.
    """
    batch, height, width, _ = rast.shape
    one, two = np.float32(1.0), np.float32(2.0)
    for b in range(batch):
        for j in range(height):
            fy = two * (j + np.float32(0.5)) / np.float32(height) - one
            for i in range(width):
                if rast[b, j, i, 3] == np.float32(0.0):
                    continue
                gu, gv = rast_grad[b, j, i, 0], rast_grad[b, j, i, 1]
                if gu == np.float32(0.0) and gv == np.float32(0.0):
                    continue
                fx = two * (i + np.float32(0.5)) / np.float32(width) - one
                t = int(rast[b, j, i, 3]) - 1
                i0, i1, i2 = triangles[t, 0], triangles[t, 1], triangles[t, 2]
                w0, w1, w2 = clip[b, i0, 3], clip[b, i1, 3], clip[b, i2, 3]
                x0, y0 = clip[b, i0, 0] - fx * w0, clip[b, i0, 1] - fy * w0
                x1, y1 = clip[b, i1, 0] - fx * w1, clip[b, i1, 1] - fy * w1
                x2, y2 = clip[b, i2, 0] - fx * w2, clip[b, i2, 1] - fy * w2
                a_sum = (x1 * y2 - y1 * x2) + (x2 * y0 - y2 * x0) + (x0 * y1 - y0 * x1)
                if a_sum == 0.0:
                    continue
                u, v = rast[b, j, i, 0], rast[b, j, i, 1]
                mean = gu * u + gv * v
                g0, g1, g2 = (gu - mean) / a_sum, (gv - mean) / a_sum, -mean / a_sum
                gx0, gy0 = g2 * y1 - g1 * y2, g1 * x2 - g2 * x1
                gx1, gy1 = g0 * y2 - g2 * y0, g2 * x0 - g0 * x2
                gx2, gy2 = g1 * y0 - g0 * y1, g0 * x1 - g1 * x0
                clip_grad[b, i0, 0] += gx0
                clip_grad[b, i0, 1] += gy0
                clip_grad[b, i0, 3] -= fx * gx0 + fy * gy0
                clip_grad[b, i1, 0] += gx1
                clip_grad[b, i1, 1] += gy1
                clip_grad[b, i1, 3] -= fx * gx1 + fy * gy1
                clip_grad[b, i2, 0] += gx2
                clip_grad[b, i2, 1] += gy2
                clip_grad[b, i2, 3] -= fx * gx2 + fy * gy2


@njit(cache=True, nogil=True)
def _interpolate_forward(attributes: Floats, triangles: Ints, rast: Floats, out: Floats) -> None:
    """Fill `out` (B, H, W, C), zero on entry."""
    batch, height, width, channels = out.shape
    for b in range(batch):
        values = attributes[b if attributes.shape[0] > 1 else 0]
        for j in range(height):
            for i in range(width):
                if rast[b, j, i, 3] == np.float32(0.0):
                    continue
                t = int(rast[b, j, i, 3]) - 1
                i0, i1, i2 = triangles[t, 0], triangles[t, 1], triangles[t, 2]
                u, v = rast[b, j, i, 0], rast[b, j, i, 1]
                rest = np.float32(1.0) - u - v
                for c in range(channels):
                    out[b, j, i, c] = u * values[i0, c] + v * values[i1, c] + rest * values[i2, c]


@njit(cache=True, nogil=True)
def _interpolate_backward(
    attributes: Floats, triangles: Ints, rast: Floats, out_grad: Floats, attributes_grad: Floats, rast_grad: Floats
) -> None:
    """Add to `attributes_grad` (like attributes) and write d(loss)/d(u, v) into `rast_grad` (B, H, W, 4).

    Either may be empty (no rows): it is then left alone.
    """
    batch, height, width, channels = out_grad.shape
    for b in range(batch):
        source = b if attributes.shape[0] > 1 else 0
        for j in range(height):
            for i in range(width):
                if rast[b, j, i, 3] == np.float32(0.0):
                    continue
                t = int(rast[b, j, i, 3]) - 1
                i0, i1, i2 = triangles[t, 0], triangles[t, 1], triangles[t, 2]
                if attributes_grad.shape[0] > 0:
                    u, v = rast[b, j, i, 0], rast[b, j, i, 1]
                    rest = np.float32(1.0) - u - v
                    for c in range(channels):
                        g = out_grad[b, j, i, c]
                        attributes_grad[source, i0, c] += u * g
                        attributes_grad[source, i1, c] += v * g
                        attributes_grad[source, i2, c] += rest * g
                if rast_grad.shape[0] > 0:
                    gu, gv = np.float32(0.0), np.float32(0.0)
                    for c in range(channels):
                        g, last = out_grad[b, j, i, c], attributes[source, i2, c]
                        gu += g * (attributes[source, i0, c] - last)
                        gv += g * (attributes[source, i1, c] - last)
                    rast_grad[b, j, i, 0] = gu
                    rast_grad[b, j, i, 1] = gv


class Rasterize(torch.autograd.Function):
    """`Rasterizer.rasterize` on the CPU; takes contiguous, checked tensors."""

    @staticmethod
    def forward(ctx: Any, clip_positions: Tensor, triangles: Tensor, height: int, width: int) -> Tensor:
        """Return (B, H, W, 4)."""
        rast = clip_positions.new_zeros(clip_positions.shape[0], height, width, 4)
        _rasterize_forward(clip_positions.numpy(), triangles.numpy(), rast.numpy())
        ctx.save_for_backward(clip_positions, triangles, rast)
        return rast

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the clip positions."""
        clip_positions, triangles, rast = ctx.saved_tensors
        clip_grad = torch.zeros_like(clip_positions)
        _rasterize_backward(
            clip_positions.numpy(), triangles.numpy(), rast.numpy(), grads[0].contiguous().numpy(), clip_grad.numpy()
        )
        return clip_grad, None, None, None


class Interpolate(torch.autograd.Function):
    """`Rasterizer.interpolate` on the CPU; takes contiguous, checked tensors."""

    @staticmethod
    def forward(ctx: Any, attributes: Tensor, rast: Tensor, triangles: Tensor) -> Tensor:
        """Return (B, H, W, C)."""
        out = rast.new_zeros(*rast.shape[:3], attributes.shape[2])
        _interpolate_forward(attributes.numpy(), triangles.numpy(), rast.numpy(), out.numpy())
        ctx.save_for_backward(attributes, rast, triangles)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the attributes and of u and v."""
        attributes, rast, triangles = ctx.saved_tensors
        attributes_grad = torch.zeros_like(attributes) if ctx.needs_input_grad[0] else None
        rast_grad = torch.zeros_like(rast) if ctx.needs_input_grad[1] else None
        _interpolate_backward(
            attributes.numpy(),
            triangles.numpy(),
            rast.numpy(),
            grads[0].contiguous().numpy(),
            attributes.new_empty(0, 0, 0).numpy() if attributes_grad is None else attributes_grad.numpy(),
            rast.new_empty(0, 0, 0, 0).numpy() if rast_grad is None else rast_grad.numpy(),
        )
        return attributes_grad, rast_grad, None

"""Analytic antialiasing of silhouettes on the CPU, with its gradients (Laine et al. 2020, section 3.5).

Between two neighbouring pixels that see different triangles, the nearer surface ends at a silhouette edge which
crosses the line through both pixel centres at t in [0, 1], counted from the pixel that sees it. The pixel whose cell
holds the crossing is a mixture: the surface spreads into the far pixel by t - 1/2, or the far colour into the near
pixel by 1/2 - t. Since t depends on the edge's end points, visibility becomes differentiable.

The paper looks for that edge among the three of the visible triangle and so misses it when triangles are smaller than
a pixel. Here the line is followed from triangle to triangle until it meets a fold or a boundary, passes the far pixel
centre, or enters the triangle seen there. Which edge it leaves a triangle by is decided by which side of the line the
vertices lie on alone, so the walk cannot lose its way to rounding. Should the nearer surface run on under the far pixel
(the far one covers it there), the edge is sought from the far pixel. Empty pixels are behind everything, although the
depth 0 stored in them may compare as nearer.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from reconstruction.rasterizer.visibility import Floats, Ints

# Longest walk in triangles. A surface is seen edge-on near its silhouette: with 82 thousand triangles on a sphere 34
# pixels wide walks of 40 are common, and a limit of 16 lost four fifths of the derivative of its area.
_MAX_STEPS = 128


@njit(cache=True, nogil=True)
def _match_half_edges(triangles: Ints, vertices: int, opposite: Ints) -> None:
    """Fill `opposite` (T, 3): for edge k of triangle t (facing its vertex k) the twin half-edge 3 * t' + k', else -1.

    Edges are bucketed by their lower vertex. Of an edge with more than two triangles, the first two are matched.
    """
    start = np.zeros(vertices + 1, np.int32)
    for t in range(triangles.shape[0]):
        for k in range(3):
            start[min(triangles[t, (k + 1) % 3], triangles[t, (k + 2) % 3]) + 1] += 1
    for i in range(vertices):
        start[i + 1] += start[i]
    bucket_end = start[:-1].copy()
    bucket = np.empty(3 * triangles.shape[0], np.int32)
    upper = np.empty(3 * triangles.shape[0], np.int32)
    for t in range(triangles.shape[0]):
        for k in range(3):
            p, q = triangles[t, (k + 1) % 3], triangles[t, (k + 2) % 3]
            low, high = min(p, q), max(p, q)
            opposite[t, k] = -1
            for i in range(start[low], bucket_end[low]):
                twin = bucket[i]
                if upper[i] == high and opposite[twin // 3, twin % 3] < 0:
                    opposite[t, k] = twin
                    opposite[twin // 3, twin % 3] = 3 * t + k
                    break
            if opposite[t, k] < 0:
                bucket[bucket_end[low]] = 3 * t + k
                upper[bucket_end[low]] = high
                bucket_end[low] += 1


@njit(cache=True, nogil=True)
def _line_crossing(screen: NDArray[np.float64], p: int, q: int, axis: int, across: float) -> float:
    """Coordinate along `axis` at which edge (p, q) crosses the line that has `across` as its other coordinate."""
    p_along, p_across = screen[p, axis], screen[p, 1 - axis]
    q_along, q_across = screen[q, axis], screen[q, 1 - axis]
    crossing: float = p_along + (across - p_across) * (q_along - p_along) / (q_across - p_across)
    return crossing


@njit(cache=True, nogil=True)
def _is_across(screen: NDArray[np.float64], p: int, q: int, axis: int) -> bool:
    """Whether edge (p, q) stands across `axis` rather than along it; the diagonal counts as across axis 0."""
    across, along = abs(screen[p, 1 - axis] - screen[q, 1 - axis]), abs(screen[p, axis] - screen[q, axis])
    return bool(across > along or (across == along and axis == 0))


@njit(cache=True, nogil=True)
def _walk(
    screen: NDArray[np.float64],
    triangles: Ints,
    opposite: Ints,
    triangle: int,
    target: int,
    axis: int,
    along: float,
    across: float,
    direction: float,
) -> tuple[int, int, float]:
    """Follow the surface from a pixel centre in `triangle` towards its neighbour, one pixel on along `axis`.

    Returns the silhouette edge's end points and the crossing t; (-1, 0, 0) if the surface reaches the neighbour's
    triangle `target` without a silhouette, (-1, 1, 0) if it runs on elsewhere.
    """
    # Of the three vertices one lies alone on its side of the line; the line leaves by one of the two edges at it.
    side0 = screen[triangles[triangle, 0], 1 - axis] >= across
    side1 = screen[triangles[triangle, 1], 1 - axis] >= across
    side2 = screen[triangles[triangle, 2], 1 - axis] >= across
    if side0 == side1 and side1 == side2:
        return -1, 1, 0.0
    alone = 0 if side1 == side2 else (1 if side0 == side2 else 2)
    apex = triangles[triangle, alone]
    first, second = (alone + 1) % 3, (alone + 2) % 3
    t_first = direction * (_line_crossing(screen, apex, triangles[triangle, first], axis, across) - along)
    t_second = direction * (_line_crossing(screen, apex, triangles[triangle, second], axis, across) - along)
    if t_first > t_second:
        edge, other, t = second, triangles[triangle, first], t_first
    else:
        edge, other, t = first, triangles[triangle, second], t_second
    apex_above = screen[apex, 1 - axis] >= across
    above, below = (apex, other) if apex_above else (other, apex)
    for _ in range(_MAX_STEPS):
        if not t <= 1.0:  # also not-a-number, from a vertex behind the eye
            return -1, 1, 0.0
        twin = opposite[triangle, edge]
        if twin < 0:
            return above, below, max(t, 0.0)
        triangle, corner = twin // 3, twin % 3
        vertex = triangles[triangle, corner]
        # Positive if the vertex lies ahead of the edge, as seen along the walk; behind, the surface folds back.
        ahead = direction * (
            (screen[above, 1 - axis] - screen[below, 1 - axis]) * (screen[vertex, axis] - screen[below, axis])
            - (screen[above, axis] - screen[below, axis]) * (screen[vertex, 1 - axis] - screen[below, 1 - axis])
        )
        if ahead < 0.0:
            return above, below, max(t, 0.0)
        if triangle == target:
            return -1, 0, 0.0
        # The vertex replaces the end point on its own side of the line; the next edge faces the replaced one.
        if screen[vertex, 1 - axis] >= across:
            replaced, above = above, vertex
        else:
            replaced, below = below, vertex
        edge = 0 if triangles[triangle, 0] == replaced else (1 if triangles[triangle, 1] == replaced else 2)
        t = direction * (_line_crossing(screen, above, below, axis, across) - along)
    return -1, 1, 0.0


@njit(cache=True, nogil=True)
def _mark_silhouettes(screen: NDArray[np.float64], triangles: Ints, opposite: Ints, marked: NDArray[np.uint8]) -> None:
    """Set `marked` (H, W) where the cell from a pixel centre to the next may hold a silhouette edge.

    Few pixels do, and only they are worth a walk. Folds have both neighbours' far vertices on one side; edges on which
    a triangle is seen exactly edge-on count too.
    """
    height, width = marked.shape
    slack = 1e-3  # pixels, against rounding of a crossing at a pixel centre
    for t in range(triangles.shape[0]):
        for k in range(3):
            twin = opposite[t, k]
            if 0 <= twin < 3 * t + k:
                continue
            a, b = triangles[t, (k + 1) % 3], triangles[t, (k + 2) % 3]
            ax, ay, bx, by = screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1]
            if twin >= 0:
                here, there = triangles[t, k], triangles[twin // 3, twin % 3]
                side_here = (bx - ax) * (screen[here, 1] - ay) - (by - ay) * (screen[here, 0] - ax)
                side_there = (bx - ax) * (screen[there, 1] - ay) - (by - ay) * (screen[there, 0] - ax)
                if side_here * side_there < 0.0:
                    continue
            x_min, x_max = max(min(ax, bx) - slack, 0.0), min(max(ax, bx) + slack, width - 1.0)
            y_min, y_max = max(min(ay, by) - slack, 0.0), min(max(ay, by) + slack, height - 1.0)
            if not (x_min <= x_max and y_min <= y_max):
                continue
            marked[int(y_min) : int(y_max) + 1, int(x_min) : int(x_max) + 1] = 1


@njit(cache=True, nogil=True)
def _find_crossings(
    clip: Floats, triangles: Ints, opposite: Ints, rast: Floats, crossings: Ints, positions: Floats
) -> int:
    """List the silhouette crossings between neighbouring pixels; returns their number, even beyond the capacity.

    `crossings` (capacity, 4) takes flat index (over B, H, W) of the near and of the far pixel, then the two vertices of
    the edge; `positions` (capacity,) takes t.
    """
    batch, height, width, _ = rast.shape
    count = 0
    screen = np.empty((clip.shape[1], 2), np.float64)  # pixel units, pixel centres at integers
    marked = np.empty((height, width), np.uint8)
    for b in range(batch):
        for v in range(clip.shape[1]):
            w = np.float64(clip[b, v, 3])
            inverse = 1.0 / w if w > 0.0 else np.nan
            screen[v, 0] = (clip[b, v, 0] * inverse + 1.0) * (0.5 * width) - 0.5
            screen[v, 1] = (clip[b, v, 1] * inverse + 1.0) * (0.5 * height) - 0.5
        marked[:] = 0
        _mark_silhouettes(screen, triangles, opposite, marked)
        for j in range(height):
            for i in range(width):
                if marked[j, i] == 0:
                    continue
                id_here = rast[b, j, i, 3]
                for axis in range(2):
                    i_next, j_next = i + 1 - axis, j + axis
                    if i_next == width or j_next == height:
                        continue
                    id_next = rast[b, j_next, i_next, 3]
                    if id_here == id_next:
                        continue
                    along, across = (i, j) if axis == 0 else (j, i)
                    next_nearer = id_here == 0.0 or (id_next != 0.0 and rast[b, j_next, i_next, 2] < rast[b, j, i, 2])
                    for attempt in range(2):
                        from_next = next_nearer if attempt == 0 else not next_nearer
                        start = int(id_next if from_next else id_here) - 1
                        target = int(id_here if from_next else id_next) - 1
                        if start < 0:
                            break
                        above, below, t = _walk(
                            screen,
                            triangles,
                            opposite,
                            start,
                            target,
                            axis,
                            along + 1.0 if from_next else along,
                            across,
                            -1.0 if from_next else 1.0,
                        )
                        if above >= 0 and _is_across(screen, above, below, axis):
                            if count < crossings.shape[0]:
                                here = (b * height + j) * width + i
                                there = (b * height + j_next) * width + i_next
                                crossings[count, 0] = there if from_next else here
                                crossings[count, 1] = here if from_next else there
                                crossings[count, 2] = above
                                crossings[count, 3] = below
                                positions[count] = t
                            count += 1
                        if above >= 0 or below == 0:
                            break
    return count


@njit(cache=True, nogil=True)
def _blend_forward(color: Floats, crossings: Ints, positions: Floats, out: Floats) -> None:
    """Add the mixtures to `out` (pixels, C), a copy of `color` on entry."""
    for n in range(crossings.shape[0]):
        near, far = crossings[n, 0], crossings[n, 1]
        share = positions[n] - np.float32(0.5)
        changed = far if share > np.float32(0.0) else near
        for c in range(color.shape[1]):
            out[changed, c] += share * (color[near, c] - color[far, c])


@njit(cache=True, nogil=True)
def _blend_backward(
    color: Floats,
    clip: Floats,
    crossings: Ints,
    positions: Floats,
    height: int,
    width: int,
    out_grad: Floats,
    color_grad: Floats,
    clip_grad: Floats,
) -> None:
    """Add to `color_grad` (pixels, C), a copy of `out_grad` on entry, and to `clip_grad` (B, V, 4; or no rows).

    With P and Q the near and far pixel centre and e(P) = (a - P w_a) x (b - P w_b), t = e(P) / (e(P) - e(Q)).
    """
    x_scale, x_offset = 0.5 * width, 0.5 * (width - 1)
    y_scale, y_offset = 0.5 * height, 0.5 * (height - 1)
    for n in range(crossings.shape[0]):
        near, far, a, b = crossings[n, 0], crossings[n, 1], crossings[n, 2], crossings[n, 3]
        share = positions[n] - np.float32(0.5)
        changed = far if share > np.float32(0.0) else near
        t_grad = 0.0
        for c in range(color.shape[1]):
            g = out_grad[changed, c]
            color_grad[near, c] += share * g
            color_grad[far, c] -= share * g
            t_grad += g * (color[near, c] - color[far, c])
        if t_grad == 0.0 or clip_grad.shape[0] == 0:
            continue
        image = near // (height * width)
        wa, wb = np.float64(clip[image, a, 3]), np.float64(clip[image, b, 3])
        xa, ya = clip[image, a, 0] * x_scale + wa * x_offset, clip[image, a, 1] * y_scale + wa * y_offset
        xb, yb = clip[image, b, 0] * x_scale + wb * x_offset, clip[image, b, 1] * y_scale + wb * y_offset
        px, py = near % width, near // width % height
        qx, qy = far % width, far // width % height
        e_near = (xa - px * wa) * (yb - py * wb) - (ya - py * wa) * (xb - px * wb)
        e_far = (xa - qx * wa) * (yb - qy * wb) - (ya - qy * wa) * (xb - qx * wb)
        span = e_near - e_far
        if span == 0.0:
            continue
        for g, x, y in ((-t_grad * e_far / span**2, px, py), (t_grad * e_near / span**2, qx, qy)):
            gxa, gya = g * (yb - y * wb), -g * (xb - x * wb)
            gxb, gyb = -g * (ya - y * wa), g * (xa - x * wa)
            clip_grad[image, a, 0] += gxa * x_scale
            clip_grad[image, a, 1] += gya * y_scale
            clip_grad[image, a, 3] += gxa * (x_offset - x) + gya * (y_offset - y)
            clip_grad[image, b, 0] += gxb * x_scale
            clip_grad[image, b, 1] += gyb * y_scale
            clip_grad[image, b, 3] += gxb * (x_offset - x) + gyb * (y_offset - y)


def build_topology(triangles: Tensor) -> Tensor:
    """Return the twin of every half-edge, (T, 3) int32: 3 * triangle + corner across edge k, or -1."""
    opposite = torch.empty_like(triangles)
    vertices = int(triangles.max()) + 1 if triangles.numel() else 0
    _match_half_edges(triangles.numpy(), vertices, opposite.numpy())
    return opposite


class Antialias(torch.autograd.Function):
    """`Rasterizer.antialias` on the CPU; takes contiguous, checked tensors."""

    @staticmethod
    def forward(
        ctx: Any, color: Tensor, rast: Tensor, clip_positions: Tensor, triangles: Tensor, opposite: Tensor
    ) -> Tensor:
        """Return (B, H, W, C)."""
        batch, height, width, channels = color.shape
        count, capacity = 0, 16 * batch * (height + width)
        while True:  # a second time only for an image of little else than silhouettes
            crossings = rast.new_empty(capacity, 4, dtype=torch.int32)
            positions = rast.new_empty(capacity)
            count = _find_crossings(
                clip_positions.numpy(),
                triangles.numpy(),
                opposite.numpy(),
                rast.numpy(),
                crossings.numpy(),
                positions.numpy(),
            )
            if count <= capacity:
                break
            capacity = count
        crossings, positions = crossings[:count], positions[:count]
        out = color.clone()
        _blend_forward(
            color.view(-1, channels).numpy(), crossings.numpy(), positions.numpy(), out.view(-1, channels).numpy()
        )
        ctx.save_for_backward(color, clip_positions, crossings, positions)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the colours and of the clip positions."""
        color, clip_positions, crossings, positions = ctx.saved_tensors
        _, height, width, channels = color.shape
        out_grad = grads[0].contiguous()
        color_grad = out_grad.clone()
        clip_grad = torch.zeros_like(clip_positions) if ctx.needs_input_grad[2] else None
        _blend_backward(
            color.view(-1, channels).numpy(),
            clip_positions.numpy(),
            crossings.numpy(),
            positions.numpy(),
            height,
            width,
            out_grad.view(-1, channels).numpy(),
            color_grad.view(-1, channels).numpy(),
            clip_positions.new_empty(0, 0, 0).numpy() if clip_grad is None else clip_grad.numpy(),
        )
        return color_grad, None, clip_grad, None, None

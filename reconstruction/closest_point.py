"""The closest point of a triangle mesh to each of many points, exactly, by a bounding-volume hierarchy.

The tree halves the triangles at the median of their centroids along the longest side of their box, down to a few
a leaf; a query looks at the nearer child first and leaves out boxes farther than the best distance so far.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAF_TRIANGLES = 4
MAX_DEPTH = 64  # of the stack: halving 2**31 triangles needs 31


@dataclass(frozen=True)
class ClosestPoints:
    """For each query point: where on the mesh the closest point lies."""

    distance: Floats  # (N,), in the mesh's unit
    face: Ints  # (N,)
    barycentric: Floats  # (N, 3), weights of the face's corners, in [0, 1], sum 1

    def interpolate(self, values: NDArray[np.floating], faces: NDArray[np.integer]) -> Floats:
        """Return vertex values (V, C) of the mesh at the closest points: (N, C)."""
        blended: Floats = np.einsum("nk,nkc->nc", self.barycentric, values[faces[self.face]].astype(np.float64))
        return blended


class TriangleTree:
    """A triangle mesh, ready to be asked for closest points."""

    def __init__(self, vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> None:
        """Take vertices (V, 3) and faces (F, 3), F > 0; both finite and in range."""
        self._corners = np.ascontiguousarray(vertices[faces], np.float64)
        self._order = np.arange(len(faces))
        leaves = 2 ** int(np.ceil(np.log2(max(1.0, len(faces) / LEAF_TRIANGLES))))
        self._boxes = np.empty((2 * leaves - 1, 2, 3))
        _build(self._corners, self._order, self._boxes, leaves)

    def query(self, points: NDArray[np.floating]) -> ClosestPoints:
        """Return the closest point of the mesh to each of `points` (N, 3)."""
        count = len(points)
        found = ClosestPoints(np.empty(count), np.empty(count, np.int64), np.empty((count, 3)))
        _query(
            np.ascontiguousarray(points, np.float64), self._corners, self._order, self._boxes,
            found.distance, found.face, found.barycentric,
        )  # fmt: skip
        return found


# The tree is complete: node n has the children 2n + 1 and 2n + 2, and splits its part of `order` in halves.


@njit(cache=True, nogil=True)
def _build(corners: Floats, order: Ints, boxes: Floats, leaves: int) -> None:
    """Sort `order` (F,) so that every node's triangles are neighbours in it, and fill `boxes` (nodes, 2, 3)."""
    centroids = (corners[:, 0] + corners[:, 1] + corners[:, 2]) / 3
    starts, ends = np.zeros(len(boxes), np.int64), np.zeros(len(boxes), np.int64)
    ends[0] = len(order)
    for node in range(len(boxes)):
        start, end = starts[node], ends[node]
        boxes[node, 0], boxes[node, 1] = np.inf, -np.inf
        for k in range(start, end):
            for corner in range(3):
                for axis in range(3):
                    x = corners[order[k], corner, axis]
                    boxes[node, 0, axis] = min(boxes[node, 0, axis], x)
                    boxes[node, 1, axis] = max(boxes[node, 1, axis], x)
        if node < leaves - 1:
            longest = np.argmax(boxes[node, 1] - boxes[node, 0])
            part = order[start:end]
            order[start:end] = part[np.argsort(centroids[part, longest])]
            middle = (start + end) // 2
            starts[2 * node + 1], ends[2 * node + 1] = start, middle
            starts[2 * node + 2], ends[2 * node + 2] = middle, end


@njit(cache=True, nogil=True)
def _query(
    points: Floats, corners: Floats, order: Ints, boxes: Floats, distance: Floats, face: Ints, barycentric: Floats
) -> None:
    inner = len(boxes) // 2
    stack, starts, ends = np.empty(MAX_DEPTH, np.int64), np.empty(MAX_DEPTH, np.int64), np.empty(MAX_DEPTH, np.int64)
    weights = np.empty(3)
    for n in range(len(points)):
        point = points[n]
        # The last answer bounds this one: neighbours in the list are often neighbours in space.
        guess = face[n - 1] if n > 0 else order[0]
        best = _to_triangle(point, corners[guess], weights)
        face[n], barycentric[n] = guess, weights
        top, stack[0], starts[0], ends[0] = 1, 0, 0, len(order)
        while top > 0:
            top -= 1
            node, start, end = stack[top], starts[top], ends[top]
            if start == end or _to_box(point, boxes[node]) >= best:
                continue
            if node >= inner:
                for k in range(start, end):
                    squared = _to_triangle(point, corners[order[k]], weights)
                    if squared < best:
                        best = squared
                        face[n], barycentric[n] = order[k], weights
                continue
            middle = (start + end) // 2
            left, right = 2 * node + 1, 2 * node + 2
            left_first = _to_box(point, boxes[left]) < _to_box(point, boxes[right])
            for is_left in (not left_first, left_first):  # the last one pushed is looked at first
                stack[top] = left if is_left else right
                starts[top], ends[top] = (start, middle) if is_left else (middle, end)
                top += 1
        distance[n] = np.sqrt(best)


@njit(cache=True, nogil=True)
def _to_box(point: Floats, box: Floats) -> float:
    """Return the squared distance of a point to a box (2, 3); an empty one is infinitely far."""
    total = 0.0
    for axis in range(3):
        outside = max(box[0, axis] - point[axis], point[axis] - box[1, axis], 0.0)
        total += outside * outside
    return total


@njit(cache=True, nogil=True)
def _to_triangle(point: Floats, triangle: Floats, weights: Floats) -> float:
    """Return the squared distance of a point to a triangle (3, 3); fill the closest point's `weights`.

    Ericson 2005, Real-Time Collision Detection, section 5.1.5: by the Voronoi region the point is in.
    """
    a, b, c = triangle[0], triangle[1], triangle[2]
    ab0, ab1, ab2 = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    ac0, ac1, ac2 = c[0] - a[0], c[1] - a[1], c[2] - a[2]
    ap0, ap1, ap2 = point[0] - a[0], point[1] - a[1], point[2] - a[2]
    aa, bb, ab = ab0 * ab0 + ab1 * ab1 + ab2 * ab2, ac0 * ac0 + ac1 * ac1 + ac2 * ac2, ab0 * ac0 + ab1 * ac1 + ab2 * ac2
    d1, d2 = ab0 * ap0 + ab1 * ap1 + ab2 * ap2, ac0 * ap0 + ac1 * ap1 + ac2 * ap2
    d3, d4 = d1 - aa, d2 - ab
    d5, d6 = d1 - ab, d2 - bb
    va, vb, vc = d3 * d6 - d5 * d4, d5 * d2 - d1 * d6, d1 * d4 - d3 * d2
    if d1 <= 0 and d2 <= 0:
        v, w = 0.0, 0.0
    elif d3 >= 0 and d4 <= d3:
        v, w = 1.0, 0.0
    elif d6 >= 0 and d5 <= d6:
        v, w = 0.0, 1.0
    elif vc <= 0 and d1 >= 0 and d3 <= 0 and aa > 0:  # aa is 0 where a triangle is only an edge
        v, w = d1 / (d1 - d3), 0.0
    elif vb <= 0 and d2 >= 0 and d6 <= 0:
        v, w = 0.0, d2 / (d2 - d6)
    elif va <= 0 and d4 - d3 >= 0 and d5 - d6 >= 0:
        w = (d4 - d3) / ((d4 - d3) + (d5 - d6))
        v = 1 - w
    else:
        total = va + vb + vc
        v, w = vb / total, vc / total
    weights[0], weights[1], weights[2] = 1 - v - w, v, w
    x, y, z = ap0 - v * ab0 - w * ac0, ap1 - v * ab1 - w * ac1, ap2 - v * ab2 - w * ac2
    squared: float = x * x + y * y + z * z
    return squared

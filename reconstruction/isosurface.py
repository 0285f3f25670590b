"""Differentiable marching tetrahedra (Shen et al. 2021, DMTet, §3.1): a signed distance becomes a mesh.

The topology (which edges the surface crosses, which triangles join them) is found by one pass over the band in
numba; the vertex positions are torch and carry gradients to the signed distances and the grid's vertices.
"""

import itertools
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch.autograd.function import once_differentiable

from reconstruction.tetgrid import Band, BoolArray, Int32Array


def _triangle_table() -> Int32Array:
    """Triangles (16, 2, 3) of each sign pattern (bit c set: corner c inside), as edge numbers; -1 where none.

    Triangles are counter-clockwise seen from outside, for positively oriented tetrahedra.
    """
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
    pairs = list(itertools.combinations(range(4), 2))
    table = np.full((16, 2, 3), -1, np.int32)
    for code in range(1, 15):
        inside = [c for c in range(4) if code >> c & 1]
        outside = [c for c in range(4) if not code >> c & 1]
        # Going round the inside corners for one outside and back makes the quad's edges consecutive.
        ring = [(i, o) for k, i in enumerate(inside) for o in (outside if k == 0 else outside[::-1])]
        loop = [pairs.index((min(e), max(e))) for e in ring]
        points = [corners[list(pairs[e])].mean(axis=0) for e in loop]
        normal = np.cross(points[1] - points[0], points[2] - points[0])
        if normal @ (corners[outside].mean(axis=0) - corners[inside].mean(axis=0)) < 0:
            loop.reverse()
        table[code, 0] = loop[:3]
        if len(loop) == 4:
            table[code, 1] = [loop[0], loop[2], loop[3]]
    return table


_TABLE = _triangle_table()
_COUNT: NDArray[np.int64] = (_TABLE[:, :, 0] >= 0).sum(axis=1)


@njit(cache=True, nogil=True)
def _crossed_edges(inside, edges):  # type: ignore[no-untyped-def]
    vertex_of_edge = np.empty(len(edges), np.int32)
    crossed = np.empty(len(edges), np.int32)
    n = 0
    for e in range(len(edges)):
        if inside[edges[e, 0]] != inside[edges[e, 1]]:
            vertex_of_edge[e] = n
            crossed[n] = e
            n += 1
    return crossed[:n].copy(), vertex_of_edge


@njit(cache=True, nogil=True)
def _triangles(inside, tets, tet_edges, vertex_of_edge, table, count):  # type: ignore[no-untyped-def]
    codes = np.empty(len(tets), np.uint8)
    n = 0
    for t in range(len(tets)):
        code = inside[tets[t, 0]] | inside[tets[t, 1]] << 1 | inside[tets[t, 2]] << 2 | inside[tets[t, 3]] << 3
        codes[t] = code
        n += count[code]
    faces = np.empty((n, 3), np.int32)
    n = 0
    for t in range(len(tets)):
        code = codes[t]
        for k in range(count[code]):
            for c in range(3):
                faces[n, c] = vertex_of_edge[tet_edges[t, table[code, k, c]]]
            n += 1
    return faces


def extract_topology(inside: BoolArray, band: Band) -> tuple[Int32Array, Int32Array]:
    """Return the crossed edges (K,) int32 of the band and the triangles (F, 3) int32 that number them.

    `inside` (V,) bool is the sign at the band's vertices. The triangles form a closed, oriented 2-manifold, counter-
    clockwise seen from outside.
    """
    sign = inside.astype(np.uint8)
    crossed, vertex_of_edge = _crossed_edges(sign, band.edges)
    return crossed, _triangles(sign, band.tets, band.tet_edges, vertex_of_edge, _TABLE, _COUNT)


def surface_vertices(positions: torch.Tensor, sdf: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Return where the linear signed distance is zero on crossed edges: (K, 3), differentiable.

    positions (V, 3) and sdf (V,) at the band's vertices; edges (K, 2) int64, each with ends of unlike sign.
    DMTet eq. 1: v = (a·s_b - b·s_a) / (s_b - s_a).
    """
    if positions.device.type != "cpu" or positions.dtype != torch.float32:
        return surface_vertices_torch(positions, sdf, edges)
    vertices: torch.Tensor = _SurfaceVertices.apply(positions, sdf, edges)  # type: ignore[no-untyped-call]
    return vertices


def surface_vertices_torch(positions: torch.Tensor, sdf: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Return what `surface_vertices` does, by torch operations alone: for any device and precision."""
    distance = sdf[edges]
    along = (distance[:, 0] / (distance[:, 0] - distance[:, 1])).unsqueeze(1)
    ends = positions[edges]
    return torch.lerp(ends[:, 0], ends[:, 1], along)


@njit(cache=True, nogil=True)
def _zeros(positions, sdf, edges, vertices):  # type: ignore[no-untyped-def]
    for k in range(len(edges)):
        p, q = edges[k, 0], edges[k, 1]
        along = sdf[p] / (sdf[p] - sdf[q])
        for c in range(3):
            vertices[k, c] = positions[p, c] + along * (positions[q, c] - positions[p, c])


@njit(cache=True, nogil=True)
def _zeros_backward(positions, sdf, edges, d_vertices, d_positions, d_sdf):  # type: ignore[no-untyped-def]
    """Add to `d_positions` (V, 3) and `d_sdf` (V,), zero on entry, in the order of the edges."""
    for k in range(len(edges)):
        p, q = edges[k, 0], edges[k, 1]
        inverse = np.float32(1) / (sdf[p] - sdf[q])
        along = sdf[p] * inverse
        d_along = np.float32(0)
        for c in range(3):
            d_positions[p, c] += (np.float32(1) - along) * d_vertices[k, c]
            d_positions[q, c] += along * d_vertices[k, c]
            d_along += d_vertices[k, c] * (positions[q, c] - positions[p, c])
        d_sdf[p] -= d_along * sdf[q] * inverse * inverse
        d_sdf[q] += d_along * sdf[p] * inverse * inverse


class _SurfaceVertices(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: torch.Tensor, sdf: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        vertices = positions.new_empty(len(edges), 3)
        _zeros(positions.detach().numpy(), sdf.detach().numpy(), edges.numpy(), vertices.numpy())
        ctx.save_for_backward(positions, sdf, edges)
        return vertices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        positions, sdf, edges = ctx.saved_tensors
        d_positions, d_sdf = torch.zeros_like(positions), torch.zeros_like(sdf)
        _zeros_backward(
            positions.detach().numpy(), sdf.detach().numpy(), edges.numpy(), grads[0].contiguous().numpy(),
            d_positions.numpy(), d_sdf.numpy(),
        )  # fmt: skip
        return d_positions, d_sdf, None

"""A body-centred cubic (BCC) tetrahedral grid, kept only in a narrow band round the surface.

The tetrahedra of the BCC lattice (Labelle and Shewchuk 2007, *Isosurface Stuffing*) are the image of Freudenthal's
triangulation of the integer lattice under one linear map, so everything combinatorial — neighbours, edge
numbers, point location — is done on integers with Freudenthal's six tetrahedra a cube, and only positions know
of BCC. Its tetrahedra are all congruent and close to regular, which keeps extracted triangles well shaped.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

# Columns: the primitive vectors of the BCC lattice, in cubic cells. Its inverse maps positions to the lattice.
PRIMITIVE = np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / 2
PRIMITIVE_INVERSE = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])

# The seven edge directions of Freudenthal's triangulation; direction d has the bits of d + 1 as coordinates.
DIRECTIONS = np.array([[(d >> axis) & 1 for axis in range(3)] for d in range(1, 8)], np.int32)


def _tet_table() -> tuple[Int32Array, Int32Array]:
    """Corner offsets (6, 4) as bit patterns, and edges (6, 6, 2) as (corner's bit pattern, direction).

    Edges are in the order 01 02 03 12 13 23 of the corners. Every tetrahedron is positively oriented.
    """
    corners, edges = [], []
    for axes in itertools.permutations(range(3)):
        a, b = 1 << axes[0], 1 << axes[1]
        tet = [0, a, a | b, 7]
        odd = np.linalg.det(np.eye(3)[list(axes)]) < 0
        if odd:
            tet[1], tet[2] = tet[2], tet[1]
        corners.append(tet)
        edges.append([(min(p, q), (p ^ q) - 1) for p, q in itertools.combinations(tet, 2)])
    return np.array(corners, np.int32), np.array(edges, np.int32)


TET_CORNERS, TET_EDGES = _tet_table()


class Lattice:
    """All BCC points of an axis-aligned box (numpy; built once a level).

    Attributes: `positions` (M, 3) float32, unit frame; `coordinates` (M, 3) int32, lattice; `low` and `high` (3,), the
    box; `spacing`, the side of a cubic cell in unit-frame lengths; `border` (M,) bool, points within one cell of the
    box's faces.
    """

    def __init__(self, low: Float64Array, high: Float64Array, spacing: float) -> None:
        cells = np.maximum(np.ceil((high - low) / spacing - 1e-9).astype(int), 2)
        self.low, self.high, self.spacing = low, high, spacing
        corners = np.stack(np.meshgrid(*(np.arange(c + 1) for c in cells), indexing="ij"), -1).reshape(-1, 3)
        centres = np.stack(np.meshgrid(*(np.arange(c) for c in cells), indexing="ij"), -1).reshape(-1, 3) + 0.5
        cubic = np.concatenate([corners, centres])
        self.positions: Float32Array = (self.low + spacing * cubic).astype(np.float32)
        self.border: BoolArray = np.any((cubic < 1) | (cubic > cells - 1), axis=1)
        self.coordinates: Int32Array = np.rint(cubic @ PRIMITIVE_INVERSE).astype(np.int32)
        # Dense table from lattice coordinates to point numbers, padded so that +1 never leaves it.
        self._table: Int32Array = np.full(self.coordinates.max(axis=0) + 2, -1, np.int32)
        self._table[tuple(self.coordinates.T)] = np.arange(len(cubic), dtype=np.int32)

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.positions)

    def point_at(self, coordinates: Int32Array) -> Int32Array:
        """Return the numbers (N,) of lattice points (N, 3), -1 where there is none."""
        inside = np.all((coordinates >= 0) & (coordinates < self._table.shape), axis=1)
        clipped = np.where(inside[:, None], coordinates, 0)
        return np.where(inside, self._table[tuple(clipped.T)], -1).astype(np.int32)

    def interpolate(self, values: Float32Array, points: Float32Array, outside: float) -> Float32Array:
        """Return the piecewise linear function with `values` (M,) at the lattice, at points (N, 3).

        Freudenthal's tetrahedron of a point follows from the order of its fractional coordinates. Points in no
        tetrahedron of the lattice get `outside`.
        """
        lattice = ((points - self.low) / self.spacing) @ PRIMITIVE_INVERSE
        base = np.floor(lattice).astype(np.int32)
        fraction = lattice - base
        order = np.argsort(-fraction, axis=1, kind="stable")
        fraction = np.take_along_axis(fraction, order, axis=1)
        weights = -np.diff(fraction, axis=1, prepend=1.0, append=0.0)
        result = np.zeros(len(points))
        missing = np.zeros(len(points), bool)
        corner = base.copy()
        for step in range(4):
            number = self.point_at(corner)
            missing |= (number < 0) & (weights[:, step] > 1e-6)
            result += weights[:, step] * values[number]
            if step < 3:
                corner[np.arange(len(points)), order[:, step]] += 1
        return np.where(missing, outside, result).astype(np.float32)


@dataclass(frozen=True)
class Band:
    """The tetrahedra near the surface, with static numbering of their edges.

    vertices (V,) int32: lattice point of each band vertex. free (V,) bool: may change sign; the others lie on
    the band's rim and are held, so that the surface cannot leave the band and stays closed. edges (E, 2) int32
    and tets (T, 4) int32 number band vertices; tet_edges (T, 6) int32 numbers edges, in order 01 02 03 12 13 23.
    """

    vertices: Int32Array
    free: BoolArray
    edges: Int32Array
    tets: Int32Array
    tet_edges: Int32Array


def bending_matrix(lattice: Lattice, vertices: Int32Array) -> csr_array:
    """Return the symmetric matrix K (V, V) float32 of the bending of values v (V, C) at lattice points `vertices` (V,).

    v' K v is the mean, over all points with both neighbours along a grid line, of the squared second difference
    v[before] - 2 v[point] + v[after]. It is zero for linear functions only: a thin plate's energy, which of a signed
    distance is the curvature of the surface whatever way triangles cut it.
    """
    number = np.full(len(lattice) + 1, -1, np.int32)  # the last, which is -1 too, stands for "no such point"
    number[vertices] = np.arange(len(vertices), dtype=np.int32)
    coordinates = lattice.coordinates[vertices]
    lines = []
    for direction in DIRECTIONS:
        before, after = (number[lattice.point_at(coordinates + sign * direction)] for sign in (-1, 1))
        inner = np.flatnonzero((before >= 0) & (after >= 0))
        lines.append(np.stack([before[inner], inner, after[inner]], axis=1))
    columns = np.concatenate(lines)
    weights = np.tile(np.array([1, -2, 1], np.float32), len(columns)) / np.sqrt(np.float32(len(columns)))
    differences = csr_array(
        (weights, columns.ravel(), np.arange(0, columns.size + 1, 3)), shape=(len(columns), len(vertices))
    )
    return csr_array(differences.T @ differences)


def narrow_band(lattice: Lattice, sdf: Float32Array, rings: int) -> Band:
    """Return the tetrahedra within `rings` edges of a sign change of `sdf` (M,), negative inside."""
    inside = sdf < 0
    neighbours = np.stack([lattice.point_at(lattice.coordinates + d) for d in DIRECTIONS])
    linked = neighbours >= 0
    near = np.zeros(len(lattice), bool)
    for number, link in zip(neighbours, linked, strict=True):
        crossing = link & (inside != inside[number])
        near[crossing] = True
        near[number[crossing]] = True
    for _ in range(rings):
        grown = near.copy()
        for number, link in zip(neighbours, linked, strict=True):
            grown[link] |= near[number[link]]
            grown[number[link & near]] = True
        near = grown

    vertices = np.flatnonzero(near).astype(np.int32)
    band_number = np.full(len(lattice), -1, np.int32)
    band_number[vertices] = np.arange(len(vertices), dtype=np.int32)

    # An edge for every vertex and direction whose far end is in the band too.
    ends = np.where(linked[:, vertices], band_number[neighbours[:, vertices]], -1)  # (7, V)
    present = ends >= 0
    edge_number = np.full(present.shape, -1, np.int32)
    edge_number[present] = np.arange(np.count_nonzero(present), dtype=np.int32)
    starts = np.broadcast_to(np.arange(len(vertices), dtype=np.int32), present.shape)
    edges = np.stack([starts[present], ends[present]], axis=1)

    # The vertex at each of the eight corners of the lattice cube that starts at a vertex.
    cube = np.concatenate([np.arange(len(vertices), dtype=np.int32)[None], ends])  # (8, V)
    tets, tet_edges = [], []
    incident = np.zeros(len(vertices), np.int32)
    for corners, edge_table in zip(TET_CORNERS, TET_EDGES, strict=True):
        whole = np.all(cube[corners] >= 0, axis=0)
        tet = cube[corners][:, whole].T
        tets.append(tet)
        tet_edges.append(np.stack([edge_number[d, cube[c, whole]] for c, d in edge_table], axis=1))
        incident += np.bincount(tet.ravel(), minlength=len(vertices)).astype(np.int32)
    all_tets = 24  # a BCC vertex touches 24 tetrahedra; fewer means that it lies on the rim
    return Band(vertices, incident == all_tets, edges, np.concatenate(tets), np.concatenate(tet_edges))

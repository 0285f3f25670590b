"""A UV atlas for a mesh that has none: decimation to a limit, normals, charts packed into one square."""

from dataclasses import dataclass

import fast_simplification
import numpy as np
import numpy.typing as npt
import xatlas

from scan2twin.errors import ReconstructionError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

CHART_PADDING = 4  # texels between charts: two mip levels stay free of a neighbour's colour
PART = 2500  # triangles cut into charts at once: xatlas's work grows with the square of their number
COARSEST_MIP = 3.0  # level at which our own lookups stop: beyond it an atlas mixes charts that are no neighbours


@dataclass(frozen=True)
class UvMesh:
    """A triangle mesh with one UV per vertex; vertices are repeated along the seams of the charts."""

    vertices: Floats  # (V, 3), in the frame the mesh was given in
    normals: Floats  # (V, 3), unit length, outward; copies of one vertex have the same
    uv: Floats  # (V, 2) in [0, 1], glTF 2.0 §3.8.3: the origin is the top-left corner of the image
    faces: Ints  # (F, 3), counter-clockwise seen from outside
    source: Ints  # (V,) the vertex of the given mesh that each vertex is a copy of

    def welded(self) -> tuple[Floats, Floats, Ints]:
        """Return vertices, normals (W, 3) and faces (F, 3) without the copies along seams: the closed surface.

        Faces keep their number and their order of corners.
        """
        _, first, index = np.unique(self.source, return_index=True, return_inverse=True)
        return self.vertices[first], self.normals[first], index[self.faces].astype(np.int32)


def decimate(vertices: Floats, faces: Ints, max_triangles: int) -> tuple[Floats, Ints]:
    """Reduce a mesh to at most about `max_triangles` by quadric edge collapse (Garland and Heckbert 1997).

    A mesh within the limit comes back as it is.
    """
    if len(faces) <= max_triangles:
        return vertices, faces
    points, triangles = fast_simplification.simplify(vertices, faces, target_count=max_triangles)
    return points.astype(np.float32), triangles.astype(np.int32)


def vertex_normals(vertices: Floats, faces: Ints) -> Floats:
    """Return outward unit normals (V, 3): the mean of the faces round each vertex, weighted by the angle there.

    Angle weights make the normal independent of how the surface is cut into triangles (Thürmer and Wüthrich 1998).
    """
    corners = vertices[faces].astype(np.float64)  # (F, 3, 3)
    to_next = np.roll(corners, -1, axis=1) - corners
    to_previous = np.roll(corners, 1, axis=1) - corners
    crossed = np.cross(to_next, to_previous)  # (F, 3, 3), the same direction at all three corners
    angle = np.arctan2(np.linalg.norm(crossed, axis=2), np.einsum("fci,fci->fc", to_next, to_previous))
    sums = np.zeros(vertices.shape)
    np.add.at(sums, faces, _unit(crossed) * angle[..., None])
    return _unit(sums).astype(np.float32)


def vertex_tangents(mesh: UvMesh) -> Floats:
    """Return tangents (V, 4) as glTF 2.0 §3.7.2.1 wants them: unit, at right angles to the normal, sign in w.

    The tangent points to where u grows; cross(normal, tangent) · w points up the image, to where v falls.
    """
    corners, uv = mesh.vertices[mesh.faces].astype(np.float64), mesh.uv[mesh.faces].astype(np.float64)
    edge1, edge2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    (u1, v1), (u2, v2) = (uv[:, 1] - uv[:, 0]).T, (uv[:, 2] - uv[:, 0]).T
    # Solving [edge1, edge2] = [along_u, along_v] · [[u1, u2], [v1, v2]], without the division by the determinant.
    orientation = np.sign(u1 * v2 - u2 * v1)[:, None]
    along_u = (edge1 * v2[:, None] - edge2 * v1[:, None]) * orientation
    along_v = (edge2 * u1[:, None] - edge1 * u2[:, None]) * orientation
    sum_u, sum_v = np.zeros(mesh.vertices.shape), np.zeros(mesh.vertices.shape)
    np.add.at(sum_u, mesh.faces, along_u[:, None])
    np.add.at(sum_v, mesh.faces, along_v[:, None])
    normals = mesh.normals.astype(np.float64)
    tangents = _unit(sum_u - normals * (normals * sum_u).sum(axis=1, keepdims=True))
    # Where the texture says nothing (all triangles round a vertex without area in it), any direction will do.
    lost = ~tangents.any(axis=1)
    tangents[lost] = _unit(np.cross(normals[lost], np.eye(3)[np.abs(normals[lost]).argmin(axis=1)]))
    sign = np.where((np.cross(normals, tangents) * sum_v).sum(axis=1, keepdims=True) > 0, -1.0, 1.0)
    return np.concatenate([tangents, sign], axis=1).astype(np.float32)


def unwrap(vertices: Floats, faces: Ints, texture_size: int) -> UvMesh:
    """Cut a mesh (V, 3), (F, 3) into charts and pack them for a square texture of `texture_size` texels.

    The same mesh gives the same atlas. Triangles without area have no place in an atlas and are left out.

    Raises:
        ReconstructionError: no triangle with an area is left.

    """
    edges = vertices[np.roll(faces, -1, axis=1)] - vertices[faces]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    faces, area = faces[area > 0], area[area > 0]
    if len(faces) == 0:
        raise ReconstructionError("export: the reconstructed mesh has no triangle with an area; there is no surface")
    # xatlas leaves out triangles below an absolute area of 1e-7: let the mean edge be about 1, whatever the unit.
    scale = 1 / np.sqrt(area.mean())

    atlas, sources = xatlas.Atlas(), []
    for part in split(vertices[faces].mean(axis=1), faces):
        used, corners = np.unique(part, return_inverse=True)
        atlas.add_mesh((vertices[used] * scale).astype(np.float32), corners.reshape(-1, 3).astype(np.uint32))
        sources.append(used)
    packing = xatlas.PackOptions()
    packing.resolution = texture_size
    packing.padding = CHART_PADDING
    atlas.generate(xatlas.ChartOptions(), packing)
    cut = [atlas.get_mesh(i) for i in range(len(sources))]
    starts = np.cumsum([0, *(len(copies) for copies, _, _ in cut)])
    source = np.concatenate([used[copies] for used, (copies, _, _) in zip(sources, cut, strict=True)])
    triangles = np.concatenate([part + start for start, (_, part, _) in zip(starts, cut, strict=False)])
    uv = np.concatenate([part for _, _, part in cut])
    normals = vertex_normals(vertices, faces)[source]
    normals[~normals.any(axis=1)] = (0.0, 1.0, 0.0)  # faces that cancel out leave no direction; glTF wants a unit one
    return UvMesh(
        vertices=vertices[source],
        normals=normals,
        uv=uv.astype(np.float32),
        faces=triangles.astype(np.int32),
        source=source.astype(np.int32),
    )


def split(centers: Floats, faces: Ints) -> list[Ints]:
    """Split faces (F, 3) with these centres (F, 3) into parts of at most `PART`, by planes through their middle."""
    if len(faces) <= PART:
        return [faces]
    order = np.argsort(centers[:, np.ptp(centers, axis=0).argmax()], kind="stable")
    halves = np.array_split(order, 2)
    return [part for half in halves for part in split(centers[half], faces[half])]


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scale vectors (…, 3) to length 1; a zero vector, which has no direction, stays zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)

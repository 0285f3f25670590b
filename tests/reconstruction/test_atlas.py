"""UV atlas: nothing is lost, nothing overlaps, and the same mesh gives the same atlas."""

import numpy as np
import pytest
import trimesh

from reconstruction.atlas import PART, UvMesh, decimate, unwrap, vertex_normals, vertex_tangents
from reconstruction.bake import rasterize_atlas
from scan2twin.errors import ReconstructionError


def arrays(mesh: trimesh.Trimesh) -> tuple[np.ndarray, np.ndarray]:
    return mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32)


@pytest.fixture(scope="module")
def knot() -> UvMesh:
    """A torus with rough edges: a genus, curvature of both signs, and many charts."""
    mesh = trimesh.creation.torus(0.35, 0.13, major_sections=40, minor_sections=20)
    noise = np.random.default_rng(1).normal(0, 0.004, mesh.vertices.shape)
    return unwrap((mesh.vertices + noise).astype(np.float32), mesh.faces.astype(np.int32), 512)


def test_every_triangle_keeps_its_place_and_orientation() -> None:
    vertices, faces = arrays(trimesh.creation.icosphere(subdivisions=2))
    mesh = unwrap(vertices, faces, 256)
    assert np.array_equal(mesh.vertices, vertices[mesh.source])
    assert {tuple(np.roll(f, -f.argmin())) for f in mesh.source[mesh.faces]} == {
        tuple(np.roll(f, -f.argmin())) for f in faces
    }


def test_welding_gives_the_closed_surface_back(knot: UvMesh) -> None:
    vertices, normals, faces = knot.welded()
    welded = trimesh.Trimesh(vertices, faces, process=False)
    assert welded.is_watertight
    assert welded.euler_number == 0  # a torus
    assert len(normals) == len(vertices) == 800


def test_no_two_triangles_share_a_point_of_the_atlas(knot: UvMesh) -> None:
    assert knot.uv.min() >= 0
    assert knot.uv.max() <= 1
    corners = knot.uv[knot.faces].astype(np.float64)
    points = np.random.default_rng(0).random((4000, 2))
    inside = []
    for i in range(3):
        a, b = corners[:, i], corners[:, (i + 1) % 3]
        edge, to_point = b - a, points[:, None] - a
        inside.append(edge[:, 0] * to_point[..., 1] - edge[:, 1] * to_point[..., 0])
    sides = np.stack(inside)
    hits = ((sides > 1e-9).all(axis=0) | (sides < -1e-9).all(axis=0)).sum(axis=1)
    assert hits.max() == 1
    assert hits.mean() > 0.5  # a packing that wastes most of the texture would be useless


def test_texels_are_spread_evenly_over_the_surface(knot: UvMesh) -> None:
    def areas(corners: np.ndarray) -> np.ndarray:
        return np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1)

    uv = np.concatenate([knot.uv, np.zeros((len(knot.uv), 1), np.float32)], axis=1)
    density = areas(uv[knot.faces]) / areas(knot.vertices[knot.faces])
    assert np.percentile(density, 99) / np.percentile(density, 1) < 4


def test_the_same_mesh_gives_the_same_atlas(knot: UvMesh) -> None:
    vertices, _, faces = knot.welded()
    first, second = unwrap(vertices, faces, 512), unwrap(vertices, faces, 512)
    assert np.array_equal(first.uv, second.uv)
    assert np.array_equal(first.faces, second.faces)


@pytest.mark.parametrize("scale", [2.0**-13, 2.0**10])  # powers of two scale without rounding
def test_the_unit_of_length_does_not_matter(scale: float) -> None:
    vertices, faces = arrays(trimesh.creation.icosphere(subdivisions=2))
    assert np.array_equal(unwrap(vertices * np.float32(scale), faces, 256).uv, unwrap(vertices, faces, 256).uv)


def test_a_mesh_cut_in_parts_stays_whole() -> None:
    vertices, faces = arrays(trimesh.creation.icosphere(subdivisions=4))
    assert len(faces) > 2 * PART
    mesh = unwrap(vertices, faces, 512)
    assert np.array_equal(unwrap(vertices, faces, 512).uv, mesh.uv)
    assert np.array_equal(mesh.vertices, vertices[mesh.source])
    welded, _, joined = mesh.welded()
    assert trimesh.Trimesh(welded, joined, process=False).is_volume
    assert {tuple(np.roll(f, -f.argmin())) for f in mesh.source[mesh.faces]} == {
        tuple(np.roll(f, -f.argmin())) for f in faces
    }
    covered = rasterize_atlas(mesh, 512)[0, ..., 3] > 0
    corners = mesh.uv[mesh.faces].astype(np.float64)
    (a, b), (c, d) = (corners[:, 1] - corners[:, 0]).T, (corners[:, 2] - corners[:, 0]).T
    assert np.abs(a * d - b * c).sum() / 2 == pytest.approx(float(covered.float().mean()), rel=0.02)  # none overlap


def test_triangles_without_area_are_left_out() -> None:
    vertices, faces = arrays(trimesh.creation.icosphere(subdivisions=1))
    faces = np.concatenate([faces, [[0, 0, 1], [2, 2, 2]]]).astype(np.int32)
    mesh = unwrap(vertices, faces, 128)
    assert len(mesh.faces) == len(faces) - 2
    assert np.isfinite(mesh.uv).all()


def test_a_mesh_without_surface_is_refused() -> None:
    with pytest.raises(ReconstructionError, match="no triangle with an area"):
        unwrap(np.zeros((3, 3), np.float32), np.array([[0, 1, 2]], np.int32), 128)


def test_normals_do_not_depend_on_how_a_face_is_cut() -> None:
    """Each corner of a cube sees three square faces, some as one triangle and some as two."""
    vertices, faces = arrays(trimesh.creation.box())
    assert np.allclose(vertex_normals(vertices, faces), np.sign(vertices) / np.sqrt(3), atol=1e-6)


def test_normals_of_a_sphere_point_outwards() -> None:
    vertices, faces = arrays(trimesh.creation.icosphere(subdivisions=3))
    cosine = (vertex_normals(vertices, faces) * vertices).sum(axis=1)
    assert cosine.min() > np.cos(np.radians(0.5))


def test_tangents_follow_the_texture(knot: UvMesh) -> None:
    """Across every triangle u grows along the tangent and v along minus the bitangent (glTF 2.0 §3.7.2.1)."""
    tangents = vertex_tangents(knot)
    assert np.linalg.norm(tangents[:, :3], axis=1) == pytest.approx(1, abs=1e-5)
    assert np.abs((tangents[:, :3] * knot.normals).sum(axis=1)).max() < 1e-5
    bitangents = np.cross(knot.normals, tangents[:, :3]) * tangents[:, 3:]
    agree = []
    for face in knot.faces:
        step, step_uv = knot.vertices[face[1:]] - knot.vertices[face[0]], knot.uv[face[1:]] - knot.uv[face[0]]
        along_u, along_v = np.linalg.solve(step_uv, step)
        tangent, bitangent = tangents[face, :3].mean(axis=0), bitangents[face].mean(axis=0)
        agree.append((along_u @ tangent / np.linalg.norm(along_u), -along_v @ bitangent / np.linalg.norm(along_v)))
    assert np.min(agree) > 0.5
    assert np.mean(agree) > 0.95


def test_decimation_keeps_the_shape_and_the_limit() -> None:
    vertices, faces = arrays(trimesh.creation.icosphere(subdivisions=5))
    fewer = decimate(vertices, faces, 3000)
    assert 2000 < len(fewer[1]) <= 3000
    small = trimesh.Trimesh(*fewer)
    assert small.volume == pytest.approx(4 / 3 * np.pi, rel=0.01)
    assert decimate(vertices, faces, len(faces))[1] is faces

"""measure and compare on shapes whose answers are known on paper."""

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from reconstruction.compare import align_solids, compare, deviations, spread_points
from reconstruction.solid import Solid, load_solid, measure
from scan2twin.errors import InputError

SPHERE = trimesh.creation.icosphere(subdivisions=4)  # 5,120 faces: 0.1 % off a true sphere


def save(folder: Path, name: str, mesh: trimesh.Trimesh) -> Path:
    mesh.export(folder / name)
    return folder / name


def bracket() -> trimesh.Trimesh:
    """A part without symmetry, of 40 × 30 × 20 cm: an L with a peg."""
    foot = trimesh.creation.box(extents=(0.4, 0.05, 0.2)).apply_translation((0.2, 0, 0))
    wall = trimesh.creation.box(extents=(0.05, 0.3, 0.2)).apply_translation((0, 0.15, 0))
    peg = trimesh.creation.icosphere(radius=0.04).apply_translation((0.3, 0.08, 0.06))
    return trimesh.util.concatenate([foot, wall, peg])


@pytest.mark.parametrize("name", ["box.glb", "box.obj", "box.ply", "box.stl", "box.off"])
def test_a_box_has_the_measures_of_a_box(tmp_path: Path, name: str) -> None:
    file = save(tmp_path, name, trimesh.creation.box(extents=(0.1, 0.2, 0.3)))
    found = measure(file, [((0, 0, 0), (0, 0.03, 0.04))])
    assert found.size == pytest.approx([0.1, 0.2, 0.3])
    assert found.surface_area == pytest.approx(2 * (0.02 + 0.03 + 0.06))
    assert found.volume == pytest.approx(0.006)
    assert (found.watertight, found.parts, found.vertices, found.triangles) == (True, 1, 8, 12)
    assert found.distances == pytest.approx([0.05])
    assert found.metric


def test_the_unit_of_a_file_is_taken_into_account(tmp_path: Path) -> None:
    file = save(tmp_path, "box.stl", trimesh.creation.box(extents=(100, 200, 300)))
    assert measure(file, [], "mm").size == pytest.approx([0.1, 0.2, 0.3])
    assert measure(file, [], "mm").volume == pytest.approx(0.006)
    assert measure(file, [], "in").size[0] == pytest.approx(2.54)


def test_a_sphere_has_the_measures_of_a_sphere(tmp_path: Path) -> None:
    found = measure(save(tmp_path, "ball.ply", SPHERE), [])
    assert found.volume == pytest.approx(4 / 3 * np.pi, rel=0.003)
    assert found.surface_area == pytest.approx(4 * np.pi, rel=0.002)


def test_an_open_surface_has_no_volume(tmp_path: Path) -> None:
    mesh = trimesh.creation.box()
    mesh.update_faces(np.arange(12) != 5)
    found = measure(save(tmp_path, "open.ply", mesh), [])
    assert not found.watertight
    assert found.volume is None


def test_a_surface_with_a_face_turned_round_is_not_closed(tmp_path: Path) -> None:
    mesh = trimesh.creation.box()
    faces = mesh.faces.copy()
    faces[3] = faces[3][::-1]
    found = measure(save(tmp_path, "turned.ply", trimesh.Trimesh(mesh.vertices, faces, process=False)), [])
    assert not found.watertight


def test_a_model_of_unknown_scale_is_told(tmp_path: Path) -> None:
    save(tmp_path, "model.glb", trimesh.creation.box())
    (tmp_path / "model.json").write_text(json.dumps({"metric": False}))
    assert not measure(tmp_path, []).metric
    (tmp_path / "cad").mkdir()
    cad = save(tmp_path / "cad", "cad.ply", trimesh.creation.box())
    assert not compare(tmp_path, cad, align="none").metric
    assert compare(tmp_path, cad, align="similarity").metric
    assert not compare(cad, tmp_path, align="similarity").metric
    (tmp_path / "model.json").write_text("damaged")
    assert measure(tmp_path, []).metric


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.glb", None, "no such file"),
        ("part.step", b"ISO-10303-21;", "cannot read .step"),
        ("bad.glb", b"glTF\x02\x00", "not a readable mesh"),
        ("bad.ply", b"ply\nformat ascii 1.0\n", "bad.ply: "),
        ("empty.obj", b"# nothing\n", "empty.obj: "),
        ("nan.obj", b"v nan 0 0\nv 0 1 0\nv 1 0 0\nf 1 2 3\n", "not finite"),
    ],
)
def test_a_file_that_cannot_be_measured_is_refused(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        load_solid(tmp_path / name)


def test_a_sphere_one_millimetre_larger_is_one_millimetre_off(tmp_path: Path) -> None:
    a = save(tmp_path, "a.ply", trimesh.Trimesh(SPHERE.vertices * 0.101, SPHERE.faces))
    b = save(tmp_path, "b.ply", trimesh.Trimesh(SPHERE.vertices * 0.100, SPHERE.faces))
    found = compare(a, b, align="none", map_file=tmp_path / "map.glb")
    for figure in (found.mean, found.rms, found.p95, found.hausdorff, found.mean_signed):
        assert figure == pytest.approx(0.001, rel=0.01)
    assert compare(b, a, align="none").mean_signed == pytest.approx(-0.001, rel=0.01)
    # With its size free, nothing is left between them.
    found = compare(a, b, align="similarity")
    assert found.scale == pytest.approx(0.100 / 0.101, rel=1e-3)
    assert found.rms < 2e-5
    colored = trimesh.load_mesh(tmp_path / "map.glb", process=False)
    red, green, blue = np.asarray(colored.visual.vertex_colors)[:, :3].mean(axis=0)
    assert red > 250
    assert max(green, blue) < 20


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10_000))
def test_a_moved_copy_is_moved_back(seed: int) -> None:
    """Any rotation and translation, of a part without symmetry."""
    mesh, rng = bracket(), np.random.default_rng(seed)
    rotation = Rotation.random(random_state=seed).as_matrix()
    moved = mesh.vertices @ rotation.T + rng.normal(size=3)
    motion = align_solids(Solid(moved, mesh.faces), Solid(np.array(mesh.vertices), mesh.faces), with_scale=False)
    back = moved @ motion[:3, :3].T + motion[:3, 3]
    assert np.abs(back - mesh.vertices).max() < 1e-4  # of 0.4
    assert motion[:3, :3] @ motion[:3, :3].T == pytest.approx(np.eye(3), abs=1e-9)


def test_a_copy_of_another_size_is_found_by_a_similarity(tmp_path: Path) -> None:
    mesh = bracket()
    b = save(tmp_path, "b.ply", mesh)
    turned = mesh.vertices @ Rotation.from_rotvec([0.4, 1.0, -0.3]).as_matrix().T * 1000 / 1.02 + (5, 6, 7)
    a = save(tmp_path, "a.stl", trimesh.Trimesh(turned, mesh.faces, process=False))
    found = compare(a, b, align="similarity", unit_a="mm")
    assert found.scale == pytest.approx(1.02, rel=1e-4)
    assert found.hausdorff < 1e-4


def test_a_free_scale_does_not_shrink_a_rough_copy_to_a_point(tmp_path: Path) -> None:
    """Nothing fits exactly, and the copy lies far off: a point of B would be the closest fit if only A were asked."""
    mesh, rng = bracket().subdivide().subdivide(), np.random.default_rng(3)
    rough = mesh.vertices + rng.normal(0, 0.004, mesh.vertices.shape)
    turned = rough @ Rotation.from_rotvec([0.0, 2.0, 0.5]).as_matrix().T + (0.3, 0.1, -0.2)
    a = save(tmp_path, "a.ply", trimesh.Trimesh(turned, mesh.faces, process=False))
    found = compare(a, save(tmp_path, "b.ply", bracket()), align="similarity")
    assert found.scale == pytest.approx(1, abs=0.02)
    assert found.rms < 0.005


def test_a_part_that_is_missing_does_not_pull(tmp_path: Path) -> None:
    """The peg is gone: the rest still lies on itself, and the largest distance says how far the peg stood out."""
    whole = bracket()
    without = trimesh.util.concatenate(whole.split(only_watertight=False)[:2])
    a, b = save(tmp_path, "a.ply", without), save(tmp_path, "b.ply", whole)
    found = compare(a, b)
    assert np.array(found.a_to_b) == pytest.approx(np.eye(4), abs=2e-4)
    assert found.hausdorff == pytest.approx(0.08 + 0.04 - 0.025, abs=0.003)


def test_points_are_spread_evenly_over_the_surface() -> None:
    box = trimesh.creation.box(extents=(1, 2, 3))
    points, normals = spread_points(Solid(np.array(box.vertices), box.faces), 20_000, np.random.default_rng(0))
    for axis, area in ((0, 6), (1, 3), (2, 2)):
        share = (np.abs(normals[:, axis]) > 0.5).mean()
        assert share == pytest.approx(2 * area / 22, abs=0.015)
    assert points.mean(axis=0) == pytest.approx([0, 0, 0], abs=0.03)
    assert np.square(points[:, 2])[np.abs(normals[:, 0]) > 0.5].mean() == pytest.approx(9 / 12, rel=0.04)


def test_inside_and_outside_have_their_sign_beside_edges_and_corners() -> None:
    box = trimesh.creation.box()
    points = np.random.default_rng(1).uniform(-0.8, 0.8, (2000, 3))
    found = deviations(points, Solid(np.array(box.vertices), box.faces))
    inside = (np.abs(points) < 0.5).all(axis=1)
    assert np.array_equal(found.signed < 0, inside)
    outward = np.linalg.norm(np.maximum(np.abs(points) - 0.5, 0), axis=1)
    assert found.distance[~inside] == pytest.approx(outward[~inside], abs=1e-9)


def test_a_map_that_is_no_glb_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--map .*map\.png"):
        compare(tmp_path / "a.ply", tmp_path / "b.ply", map_file=tmp_path / "map.png")

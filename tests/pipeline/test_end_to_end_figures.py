"""The geometry figures of the capture benchmark, against cases whose answer is known."""

from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from scan2twin.benchmark import SampledSurface, compare_meshes

SPOT = Path(__file__).parents[1] / "data/spot-capture/truth/mesh.obj"


@pytest.fixture(scope="module")
def spot() -> trimesh.Trimesh:
    return trimesh.load_mesh(SPOT, process=False)


def test_the_truth_itself_has_no_error_in_any_rigid_place(spot: trimesh.Trimesh) -> None:
    moved = spot.copy()
    transform = np.eye(4)
    transform[:3, :3] = Rotation.from_rotvec(np.radians([0.3, -0.5, 0.2])).as_matrix()
    transform[:3, 3] = [0.002, -0.001, 0.0015]
    moved.apply_transform(transform)
    figures = compare_meshes(moved, spot)
    assert figures.chamfer_percent < 0.02
    assert figures.size_error_percent < 0.3
    assert figures.alignment_degrees == pytest.approx(
        np.degrees(np.linalg.norm(np.radians([0.3, -0.5, 0.2]))), abs=0.06
    )


def test_the_alignment_keeps_the_scale_so_that_a_wrong_size_shows(spot: trimesh.Trimesh) -> None:
    larger = spot.copy()
    larger.apply_scale(1.03)
    figures = compare_meshes(larger, spot)
    assert figures.size_error_percent == pytest.approx(3, abs=0.5)
    assert figures.chamfer_percent > 0.3


def test_an_offset_surface_has_its_offset_as_error() -> None:
    truth = trimesh.creation.icosphere(subdivisions=5, radius=0.1)
    model = trimesh.creation.icosphere(subdivisions=5, radius=0.101)
    for sphere in (truth, model):
        sphere.apply_translation([0, 0.1, 0])
    figures = compare_meshes(model, truth)
    assert figures.accuracy_mm == pytest.approx(1, rel=0.02)
    assert figures.completeness_mm == pytest.approx(1, rel=0.02)
    assert figures.size_error_percent == pytest.approx(1, abs=0.1)


def test_what_lies_under_the_ground_line_does_not_count(spot: trimesh.Trimesh) -> None:
    skirt = trimesh.creation.box(extents=[0.3, 0.002, 0.3])  # a slab of floor left round the feet
    skirt.apply_translation([0, 0.002, 0])
    figures = compare_meshes(trimesh.util.concatenate([spot, skirt]), spot)
    assert figures.chamfer_percent < 0.02


def test_a_missing_part_shows_in_completeness_only(spot: trimesh.Trimesh) -> None:
    lower = spot.submesh([np.flatnonzero(spot.triangles_center[:, 1] < 0.2)], append=True)
    figures = compare_meshes(lower, spot)
    assert figures.completeness_percent > 10 * figures.accuracy_percent
    assert figures.size_error_percent > 10


def test_closest_points_agree_with_a_search_of_every_triangle(spot: trimesh.Trimesh) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(spot.bounds[0] - 0.02, spot.bounds[1] + 0.02, (60, 3))
    _, distance = SampledSurface(spot).closest(points)
    every = [
        np.linalg.norm(
            trimesh.triangles.closest_point(spot.triangles, np.tile(p, (len(spot.faces), 1))) - p, axis=1
        ).min()
        for p in points
    ]
    np.testing.assert_allclose(distance, every, atol=2e-5)

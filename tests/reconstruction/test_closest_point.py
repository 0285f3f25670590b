"""The closest point on a mesh, against brute force by another method."""

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from reconstruction.closest_point import TriangleTree


def brute_force(point: NDArray[np.float64], triangle: NDArray[np.float64]) -> float:
    """Distance of a point to a triangle as a bounded least-squares problem: weights ≥ 0 whose sum is 1."""
    heavy = 1e6  # of the row that makes the weights sum to 1
    rows = np.vstack([triangle.T, np.full(3, heavy)])
    weights = lsq_linear(rows, np.append(point, heavy), bounds=(0, 1), tol=1e-14).x
    return float(np.linalg.norm(triangle.T @ (weights / weights.sum()) - point))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_distances_are_those_of_brute_force(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    vertices, faces = rng.normal(size=(3 * count, 3)), np.arange(3 * count).reshape(-1, 3)
    points = rng.normal(size=(3, 3)) * 2
    found = TriangleTree(vertices, faces).query(points)
    for i, point in enumerate(points):
        assert found.distance[i] == pytest.approx(min(brute_force(point, t) for t in vertices[faces]), abs=1e-5)
    closest = found.interpolate(vertices, faces)
    assert np.linalg.norm(closest - points, axis=1) == pytest.approx(found.distance, abs=1e-12)
    assert found.barycentric.min() >= -1e-12
    assert found.barycentric.sum(axis=1) == pytest.approx(1)


def test_a_fine_mesh_gives_the_distance_of_every_triangle() -> None:
    """The tree never misses: the same as looking at all triangles, one tree each."""
    sphere = trimesh.creation.icosphere(subdivisions=2)
    points = np.random.default_rng(0).normal(size=(200, 3))
    found = TriangleTree(sphere.vertices, sphere.faces).query(points)
    every = [TriangleTree(sphere.vertices, sphere.faces[k : k + 1]).query(points).distance for k in range(320)]
    assert found.distance == pytest.approx(np.min(every, axis=0), abs=1e-12)
    assert found.distance == pytest.approx(np.array(every)[found.face, np.arange(200)], abs=1e-12)


@pytest.mark.parametrize("face", [(0, 1, 2), (1, 0, 2), (0, 0, 2), (0, 2, 2), (2, 0, 2)])
def test_a_triangle_without_area_is_a_line(face: tuple[int, int, int]) -> None:
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])
    found = TriangleTree(vertices, np.array([face])).query(np.array([[1.5, 1, 0], [5.0, 0, 0]]))
    assert found.distance == pytest.approx([1, 3])

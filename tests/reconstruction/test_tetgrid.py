import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconstruction.tetgrid import Lattice, narrow_band

LOW, HIGH = np.array([-0.5, -0.4, -0.3]), np.array([0.5, 0.4, 0.3])


@pytest.fixture(scope="module")
def lattice():
    return Lattice(LOW, HIGH, 0.1)


def test_points_are_the_corners_and_centres_of_the_cubes(lattice):
    assert len(lattice) == 11 * 9 * 7 + 10 * 8 * 6
    np.testing.assert_allclose(lattice.positions.min(axis=0), LOW, atol=1e-6)
    np.testing.assert_allclose(lattice.positions.max(axis=0), HIGH, atol=1e-6)


def test_every_point_is_found_by_its_coordinates_and_nothing_else(lattice):
    np.testing.assert_array_equal(lattice.point_at(lattice.coordinates), np.arange(len(lattice)))
    assert (lattice.point_at(lattice.coordinates - 100) == -1).all()


@settings(deadline=None)
@given(st.lists(st.floats(-0.9, 0.9), min_size=3, max_size=3), st.lists(st.floats(-2, 2), min_size=4, max_size=4))
def test_interpolation_is_exact_for_linear_functions(where, linear):
    lattice = Lattice(LOW, HIGH, 0.1)
    point = np.array([where]) * (HIGH - 0.06)  # a point on the rim of the box may lie in no whole tetrahedron
    values = (lattice.positions @ np.array(linear[:3]) + linear[3]).astype(np.float32)
    found = lattice.interpolate(values, point.astype(np.float32), outside=99.0)
    assert found[0] == pytest.approx(float(point[0] @ linear[:3] + linear[3]), abs=1e-5)


def test_interpolation_outside_the_box_gives_the_stated_value(lattice):
    values = np.zeros(len(lattice), np.float32)
    assert lattice.interpolate(values, np.array([[3.0, 0, 0]], np.float32), outside=7.0)[0] == 7.0


def _whole_band(lattice):
    """A band that holds every tetrahedron: signs alternate, so every edge is near a crossing."""
    sdf = np.where(np.arange(len(lattice)) % 2, 1.0, -1.0).astype(np.float32)
    return narrow_band(lattice, sdf, rings=2)


def test_tetrahedra_fill_the_box_without_overlap(lattice):
    band = _whole_band(lattice)
    corners = lattice.positions[band.vertices][band.tets].astype(np.float64)
    volumes = np.linalg.det(corners[:, 1:] - corners[:, :1]) / 6
    np.testing.assert_allclose(volumes, 0.1**3 / 12, rtol=1e-4)  # all congruent, all positively oriented
    # The box is filled but for half a pyramid at each face, where the outer centres would be.
    assert volumes.sum() == pytest.approx(len(band.tets) * 0.1**3 / 12, rel=1e-5)
    centre = np.array([0.013, 0.021, -0.017])  # every interior point lies in exactly one tetrahedron
    barycentric = np.linalg.solve(
        np.swapaxes(corners[:, 1:] - corners[:, :1], 1, 2), (centre - corners[:, 0])[:, :, None]
    )[:, :, 0]
    assert np.count_nonzero((barycentric >= 0).all(axis=1) & (barycentric.sum(axis=1) <= 1)) == 1


def test_edges_are_numbered_once_and_as_the_tetrahedra_say(lattice):
    band = _whole_band(lattice)
    unordered = np.sort(band.edges, axis=1)
    assert len(np.unique(unordered, axis=0)) == len(band.edges)
    pairs = list(itertools.combinations(range(4), 2))
    for column, (a, b) in enumerate(pairs):
        expected = np.sort(band.tets[:, [a, b]], axis=1)
        np.testing.assert_array_equal(unordered[band.tet_edges[:, column]], expected)


def test_the_band_is_narrow_and_its_rim_is_held():
    lattice = Lattice(np.full(3, -0.6), np.full(3, 0.6), 0.1)
    sdf = (np.linalg.norm(lattice.positions, axis=1) - 0.2).astype(np.float32)
    band = narrow_band(lattice, sdf, rings=2)
    distance = np.abs(sdf[band.vertices])
    assert distance.max() < 0.1 * 3.1  # a crossing and two rings of edges at most one cell long
    crossing_edges = (sdf[band.vertices] < 0)[band.edges]
    ends = np.unique(band.edges[crossing_edges[:, 0] != crossing_edges[:, 1]])
    assert band.free[ends].all()  # what the surface passes may move
    assert not band.free[distance > 0.1 * 2.9].any()
    assert 0 < np.count_nonzero(~band.free) < len(band.free)

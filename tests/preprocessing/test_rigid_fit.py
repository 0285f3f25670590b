import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from preprocessing.rigid_fit import agree_rigid, fit_rigid


def moved(points: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rotation, shift = Rotation.random(rng=rng).as_matrix(), rng.normal(size=3)
    return points @ rotation.T + shift, rotation, shift


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(3, 30), noise=st.floats(0, 2), flat=st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_fit_is_that_of_scipy(seed, count, noise, flat):
    """With noise as large as the points too, where mirrored points often fit better; and for points of a plane."""
    rng = np.random.default_rng(seed)
    source = rng.normal(size=(count, 3)) * [1, 1, 0 if flat else 1]
    target, *_ = moved(source, rng)
    target += noise * rng.normal(size=target.shape)
    rotation, shift = fit_rigid(source, target)
    centred = target - target.mean(0), source - source.mean(0)
    reference, distance = Rotation.align_vectors(*centred)

    def cost(R: np.ndarray) -> float:
        return float(np.square(centred[1] @ R.T - centred[0]).sum())

    assert np.linalg.det(rotation) == pytest.approx(1)
    assert cost(rotation) == pytest.approx(distance**2, rel=1e-6, abs=1e-12)
    singular = np.linalg.svd(centred[1].T @ centred[0], compute_uv=False)
    if singular[1] - singular[2] > 1e-3 * singular[0]:  # else other rotations fit as well
        np.testing.assert_allclose(rotation, reference.as_matrix(), atol=1e-6)
    np.testing.assert_allclose(rotation @ source.mean(0) + shift, target.mean(0), atol=1e-9)


def test_many_fits_at_once_are_those_of_one_after_the_other():
    rng = np.random.default_rng(1)
    source, target = rng.normal(size=(2, 7, 5, 3))
    R, t = fit_rigid(source, target)
    for k in range(7):
        one = fit_rigid(source[k], target[k])
        np.testing.assert_allclose(R[k], one[0], atol=1e-12)
        np.testing.assert_allclose(t[k], one[1], atol=1e-12)


@pytest.mark.parametrize("wrong", [0.0, 0.5, 0.9])
def test_the_transform_that_pairs_agree_on_is_found_among_wrong_ones(wrong):
    rng = np.random.default_rng(2)
    source = rng.uniform(-0.5, 0.5, (400, 3))
    target, rotation, shift = moved(source, rng)
    target += 0.002 * rng.normal(size=target.shape)
    mixed = rng.random(400) < wrong
    target[mixed] = target[mixed][rng.permutation(mixed.sum())]
    found = agree_rigid(source, target, 0.015, 0.1)
    assert found is not None
    assert np.degrees(Rotation.from_matrix(found[0] @ rotation.T).magnitude()) < 0.5
    np.testing.assert_allclose(found[1], shift, atol=0.005)
    assert found[2][~mixed].mean() > 0.99
    assert np.count_nonzero(found[2] & mixed) < 10


def test_pairs_without_a_common_transform_hardly_agree():
    rng = np.random.default_rng(3)
    source, target = rng.uniform(-0.5, 0.5, (2, 300, 3))
    found = agree_rigid(source, target, 0.015, 0.1)
    assert found is None or found[2].sum() < 10


def test_two_pairs_tell_no_transform():
    assert agree_rigid(np.zeros((2, 3)), np.ones((2, 3)), 0.015, 0.1) is None

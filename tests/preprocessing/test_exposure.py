"""Exposure gains from points that several frames see: synthetic observations with known gains."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from preprocessing import exposure
from preprocessing.exposure import HUBER, MAD_TO_SIGMA, MIN_OBSERVATIONS, patch_light, solve_gains
from preprocessing.images import srgb_to_linear


def observations(
    frames: int = 8, points: int = 300, seen_by: int = 4, seed: int = 0, spread: float = 0.3
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return true gains (frames, 3), and frame (K,), point (K,) and light (K, 3) of points seen by random frames."""
    rng = np.random.default_rng(seed)
    log_gain = rng.uniform(-spread, spread, (frames, 3))
    gains = np.exp(log_gain - log_gain.mean(axis=0))
    frame = np.concatenate([rng.permutation(frames)[:seen_by] for _ in range(points)])
    point = np.repeat(np.arange(points), seen_by)
    albedo = rng.uniform(0.08, 0.4, (points, 3))
    return gains, frame, point, gains[frame] * albedo[point]


def test_gains_are_exact_where_nothing_disturbs_them():
    gains, frame, point, light = observations()
    np.testing.assert_allclose(solve_gains(frame, point, light, 8), gains, rtol=1e-9)


def test_outliers_and_what_depends_on_the_view_hardly_matter():
    gains, frame, point, light = observations(points=1000)
    rng = np.random.default_rng(1)
    light *= np.exp(rng.normal(0, 0.05, light.shape))
    highlights = rng.random(len(light)) < 0.1
    light[highlights] *= rng.uniform(1.5, 2.0, (highlights.sum(), 1))
    np.testing.assert_allclose(solve_gains(frame, point, light, 8), gains, rtol=0.015)


def test_without_the_prior_it_agrees_with_a_general_robust_solver(monkeypatch):
    """Huber's loss by scipy over all unknowns at once, its limit found again from the residuals as here."""
    monkeypatch.setattr(exposure, "GAIN_SIGMA", np.inf)
    _, frame, point, light = observations(frames=5, points=40)
    light *= np.exp(np.random.default_rng(2).standard_t(2, light.shape) * 0.05)
    log_light = np.log(light[:, 0])

    def residuals(unknown: np.ndarray) -> np.ndarray:
        return log_light - unknown[:5][frame] - unknown[5:][point]

    unknown, limit = np.zeros(45), 1.0
    for _ in range(30):
        unknown = least_squares(residuals, unknown, loss="huber", f_scale=limit, xtol=1e-12, ftol=1e-12).x
        limit = HUBER * MAD_TO_SIGMA * np.median(np.abs(residuals(unknown)))
    expected = unknown[:5] - unknown[:5].mean()
    np.testing.assert_allclose(np.log(solve_gains(frame, point, light, 5)[:, 0]), expected, atol=1e-3)


def test_light_that_moves_with_the_camera_adds_up_to_less(monkeypatch):
    """Points move down through the pictures of a rising camera, whose lamp lights the top of each picture more."""
    rng = np.random.default_rng(3)
    height = rng.uniform(-10, 40, 4000)  # of the points, in frames
    frame = np.repeat(np.arange(30), 4000)
    place = np.tile(height, 30) - frame
    seen = np.abs(place) < 5
    frame, point, place = frame[seen], np.tile(np.arange(4000), 30)[seen], place[seen]
    light = 0.2 * np.exp(0.03 * place + rng.normal(0, 0.15, place.shape))[:, None].repeat(3, axis=1)
    swing = [np.ptp(np.log(solve_gains(frame, point, light, 30)))]
    monkeypatch.setattr(exposure, "GAIN_SIGMA", np.inf)
    swing.append(np.ptp(np.log(solve_gains(frame, point, light, 30))))
    assert swing[1] > 0.8  # every frame seems 3 % darker than the one before
    assert swing[0] < 0.7 * swing[1]


@settings(deadline=None, max_examples=25)
@given(st.tuples(*[st.floats(0.5, 1.5)] * 3), st.integers(0, 1000))
def test_brighter_and_coloured_surfaces_have_the_same_gains(factor, seed):
    _, frame, point, light = observations(seed=seed, points=100)
    light *= np.exp(np.random.default_rng(seed).normal(0, 0.05, light.shape))
    gains = solve_gains(frame, point, light, 8)
    np.testing.assert_allclose(solve_gains(frame, point, light * factor, 8), gains, rtol=1e-9)
    np.testing.assert_allclose(np.log(gains).mean(axis=0), 0, atol=1e-12)


def test_a_frame_that_shares_too_few_points_has_no_gain_and_changes_no_other():
    gains, frame, point, light = observations()
    few = np.flatnonzero(frame == 5)[: MIN_OBSERVATIONS - 1]
    kept = np.flatnonzero(frame != 5)
    found = solve_gains(*(values[np.r_[kept, few]] for values in (frame, point, light)), 8)
    assert np.isnan(found[5]).all()
    others = np.arange(8) != 5
    np.testing.assert_array_equal(found[others], solve_gains(frame[kept], point[kept], light[kept], 8)[others])
    expected = gains[others] / np.exp(np.log(gains[others]).mean(axis=0))
    np.testing.assert_allclose(found[others], expected, rtol=1e-9)


def test_points_that_one_frame_alone_sees_tell_nothing():
    alone = np.arange(40)
    assert np.isnan(solve_gains(alone % 2, alone, np.full((40, 3), 0.2), 2)).all()
    pair = np.r_[0:15, 0:15, 15:30, 15:30]  # frame 0 shares 15 points with each of frames that have no others
    frame = np.repeat([0, 1, 0, 2], 15)
    assert np.isnan(solve_gains(frame, pair, np.full((60, 3), 0.2), 3)).all()
    assert np.isnan(solve_gains(alone[:0], alone[:0], np.empty((0, 3)), 2)).all()


def test_pixels_cut_off_or_black_do_not_count():
    gains, frame, point, light = observations()
    burnt, dark = point % 5 == 0, point % 5 == 1
    light[burnt], light[dark] = np.nan, 0.001
    np.testing.assert_allclose(solve_gains(frame, point, light, 8), gains, rtol=1e-9)


def test_groups_of_frames_that_share_no_points_have_a_mean_of_1_each():
    gains, frame, point, light = observations(frames=4)
    _, *others = observations(frames=3, seen_by=3, seed=1)
    found = solve_gains(np.r_[frame, others[0] + 4], np.r_[point, others[1] + 300], np.r_[light, others[2]], 7)
    np.testing.assert_allclose(found[:4], gains, rtol=1e-8)
    np.testing.assert_allclose(np.log(found[4:]).mean(axis=0), 0, atol=1e-8)


@pytest.mark.parametrize(
    ("centre", "half_side", "rows", "columns"),
    [
        ((3.5, 2.5), 0.1, slice(2, 3), slice(3, 4)),  # the middle of a pixel
        ((4.0, 5.0), 2.0, slice(3, 7), slice(2, 6)),
        ((0.2, 0.3), 2.0, slice(0, 2), slice(0, 2)),  # cut by the corner
        ((9.99, 7.99), 0.2, slice(7, 8), slice(9, 10)),
    ],
)
def test_the_light_of_a_patch_is_the_mean_of_its_linear_pixels(centre, half_side, rows, columns):
    image = np.random.default_rng(3).integers(0, 250, (8, 10, 3), dtype=np.uint8)
    light = patch_light(image, np.array([centre]), np.array([half_side]))
    expected = srgb_to_linear(image[rows, columns] / 255.0).mean(axis=(0, 1))
    np.testing.assert_allclose(light, [expected], rtol=1e-6)


def test_a_patch_with_a_pixel_that_is_cut_off_has_no_light():
    image = np.full((20, 20, 3), 100, np.uint8)
    image[5, 7, 1] = 250
    seen = np.isnan(patch_light(image, np.array([[7.5, 5.5], [9.0, 5.5], [12.5, 5.5]]), np.array([0.1, 2.0, 2.0])))
    assert seen.all(axis=1).tolist() == [True, True, False]
    assert not seen[2].any()

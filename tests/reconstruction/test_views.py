import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from views_of_a_ball import camera_centres, write_dataset

from reconstruction.data import Views, load_views, mask_certainty
from scan2twin.frames import PixelRectangle


def views_with_photo(photo, side=40):
    images = torch.zeros(1, side, side, 4, dtype=torch.uint8)
    images[..., 3] = 255
    return Views((0,), images, torch.eye(4)[None], torch.eye(4)[None], torch.ones(1), np.array([photo], np.float64))


def test_only_pixels_wholly_within_the_photo_count():
    views = views_with_photo((0.26, 0.5, 0.9, 1.0))
    assert views.window(0) == (slice(20, 40), slice(11, 36))  # 10.4 and 36 pixels, and the upper half
    counted = np.zeros((40, 40), np.uint8)
    counted[20:40, 11:36] = 255
    np.testing.assert_array_equal(views.pixel_weight[0], counted)
    assert views.resized(20).window(0) == (slice(10, 20), slice(6, 18))


@given(*[st.floats(0, 0.4)] * 4, st.integers(8, 512))
def test_a_window_lies_in_the_photo_and_misses_less_than_a_pixel_a_side(left, bottom, right, top, side):
    edges = np.array([left, bottom, 1 - right, 1 - top])
    rows, columns = views_with_photo(edges, 8).resized(side).window(0)
    found = np.array([columns.start, rows.start, columns.stop, rows.stop])
    slack = 2e-3
    assert (found[:2] >= edges[:2] * side - slack).all()
    assert (found[:2] < edges[:2] * side + 1).all()
    assert (found[2:] <= edges[2:] * side + slack).all()
    assert (found[2:] > edges[2:] * side - 1).all()


def test_views_know_where_their_photo_ends(tmp_path):
    dataset = write_dataset(tmp_path, camera_centres(12), heldout_every=0)
    dataset.frames[3].photo = PixelRectangle(left=-5.0, top=16.0, right=48.0, bottom=70.0)
    views, _ = load_views(tmp_path, dataset, "train", 32)
    assert views.window(2) == (slice(0, 32), slice(0, 32))
    assert views.window(3) == (slice(0, 24), slice(0, 24))  # bottom row first: the missing top is at the end


def test_views_know_their_gains_and_start_at_1_without(tmp_path):
    dataset = write_dataset(tmp_path, camera_centres(12), heldout_every=0)
    dataset.frames[3].gain = (0.5, 1.0, 1.5)
    views, _ = load_views(tmp_path, dataset, "train", 32)
    np.testing.assert_array_equal(views.gain[3], [0.5, 1.0, 1.5])
    assert (views.gain[[0, 1, 2, *range(4, 12)]] == 1).all()


def test_a_sharp_outline_is_certain_wherever_it_falls_between_the_pixels():
    fine = np.zeros((400, 400), np.uint8)
    cv2.circle(fine, (203, 190), 120, 255, -1)
    mask = cv2.resize(fine, (40, 40), interpolation=cv2.INTER_AREA)
    assert ((mask > 0) & (mask < 255)).sum() > 60
    assert mask_certainty(mask).min() > 0.7
    assert mask_certainty(mask).mean() > 0.99


@pytest.mark.parametrize(("width", "certainty"), [(1, 1.0), (8, 0.25), (40, 0.05)])
def test_the_middle_of_a_soft_border_counts_less_the_softer_it_is(width, certainty):
    ramp = np.clip((np.arange(81) - 40) / width + 0.5, 0, 1)
    mask = np.tile(np.rint(255 * ramp).astype(np.uint8), (5, 1))
    assert mask_certainty(mask)[2, 40] == pytest.approx(certainty, abs=0.01)
    assert (mask_certainty(mask)[:, [0, -1]] == 1).all()

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from views_of_a_ball import look_at

from reconstruction.cameras import clip_from_camera, inverse_rigid
from reconstruction.visual_hull import FAR, hull_signed_distance, silhouette_distance, sphere_signed_distance
from scan2twin.capture.models import Intrinsics

SIDE, FOCAL, DISTANCE, RADIUS = 128, 200.0, 2.0, 0.4


@pytest.fixture(scope="module")
def sphere_views():
    """The outlines of a sphere seen from 24 sides: distances, projections (B, 3, 4) and focal lengths."""
    turns = np.arange(24) * (3 - 5**0.5) * np.pi
    height = 0.9 - 1.8 * (np.arange(24) + 0.5) / 24
    ring = np.sqrt(1 - height**2)
    centers = DISTANCE * np.stack([ring * np.cos(turns), height, ring * np.sin(turns)], axis=1)
    clip = clip_from_camera(Intrinsics(fx=FOCAL, fy=FOCAL, cx=SIDE / 2, cy=SIDE / 2), SIDE, SIDE)
    projections = []
    for center in centers:
        m = clip @ inverse_rigid(look_at(center))
        projections.append(np.stack([SIDE / 2 * (m[0] + m[3]), SIDE / 2 * (m[3] - m[1]), m[3]]))
    # A sphere's outline from distance D: a circle of focal · r / sqrt(D² - r²) pixels round the centre.
    pixel = np.arange(SIDE) + 0.5 - SIDE / 2
    outline = FOCAL * RADIUS / np.sqrt(DISTANCE**2 - RADIUS**2)
    mask = np.where(np.hypot(*np.meshgrid(pixel, pixel)) < outline, 255, 0).astype(np.uint8)
    distances = np.repeat(silhouette_distance(mask)[None], len(centers), axis=0)
    return distances, np.array(projections), np.full(len(centers), FOCAL)


def test_silhouette_distance_agrees_with_scipy():
    random = np.random.default_rng(0)
    mask = np.where(random.random((40, 50)) < 0.5, 255, 0).astype(np.uint8)
    mask[10:30, 10:35] = 255
    inside = mask >= 128
    expected = np.where(inside, 0.5 - distance_transform_edt(inside), distance_transform_edt(~inside) - 0.5)
    np.testing.assert_allclose(silhouette_distance(mask), expected, atol=1e-4)


def test_silhouette_distance_sees_no_outline_where_the_photo_ends():
    mask = np.zeros((40, 50), np.uint8)
    mask[10:30, :20] = 255  # goes on beyond the photo's left edge, at column 8
    mask[:, :8] = 77  # not of the photo
    found = silhouette_distance(mask, (slice(None), slice(8, None)))
    whole = np.zeros((40, 90), np.uint8)
    whole[10:30, :60] = 255
    np.testing.assert_allclose(found[:, 8:], silhouette_distance(whole)[:, 48:], atol=1e-4)


def test_what_lies_beyond_the_photo_is_no_vote(sphere_views):
    """The left half of some images is not of the photo: the hull there is what the other views say."""
    distances, projections, focal = sphere_views
    blind = distances.copy()
    blind[:6, :, : SIDE // 2] = 50.0
    windows = np.tile([0.0, 0.0, SIDE, SIDE], (len(blind), 1))
    points = np.random.default_rng(5).uniform(-0.15, 0.15, (200, 3)).astype(np.float32)
    assert (hull_signed_distance(points, blind, projections, focal, disagree=0.0) > 0).any()
    windows[:6, 0] = SIDE // 2
    assert (hull_signed_distance(points, blind, projections, focal, disagree=0.0, windows=windows) < 0).all()


def test_the_hull_of_a_sphere_is_the_sphere(sphere_views):
    random = np.random.default_rng(1)
    points = random.normal(size=(500, 3))
    points *= random.uniform(0.2, 0.6, (500, 1)) / np.linalg.norm(points, axis=1, keepdims=True)
    found = hull_signed_distance(points.astype(np.float32), *sphere_views, disagree=0.0)
    expected = sphere_signed_distance(points, RADIUS)
    clear = np.abs(expected) > 0.03  # the hull of 24 outlines bulges a little beyond the sphere
    np.testing.assert_array_equal(found[clear] < 0, expected[clear] < 0)
    assert np.abs(found - expected)[expected < 0].max() < 0.05


def test_a_share_of_wrong_masks_does_not_carve_the_object_away(sphere_views):
    distances, projections, focal = sphere_views
    wrong = distances.copy()
    wrong[[3, 11]] = 50.0  # these two masks say that there is nothing: 2 of 24 views
    inside = np.random.default_rng(2).uniform(-0.15, 0.15, (100, 3)).astype(np.float32)
    assert (hull_signed_distance(inside, wrong, projections, focal, disagree=0.0) > 0).all()
    assert (hull_signed_distance(inside, wrong, projections, focal, disagree=0.1) < 0).all()
    outside = np.array([[0.55, 0, 0], [0, 0, -0.55]], np.float32)
    assert (hull_signed_distance(outside, wrong, projections, focal, disagree=0.1) > 0).all()


def test_views_that_look_through_an_opening_are_not_overruled(sphere_views):
    """Three of 24 views see background in the middle, as through a ring; three others an outline that is a bit off."""
    distances, projections, focal = sphere_views
    seen = distances.copy()
    pixel = np.arange(SIDE) + 0.5 - SIDE / 2
    seen[:3] = np.maximum(seen[:3], 12 - np.hypot(*np.meshgrid(pixel, pixel)))
    seen[3:6] = distances[3:6] + 1.5  # pixels: 0.015 of a unit-frame length
    middle, rim = np.zeros((1, 3), np.float32), np.array([[0.0, 0.36, 0.0]], np.float32)

    def distance(points, far_disagree):
        return hull_signed_distance(points, seen, projections, focal, disagree=0.15, far_disagree=far_disagree)

    assert distance(middle, 0.15) < 0
    # 12 pixels at 2 over 200 is 0.12; the opening is widened by no more than FAR.
    np.testing.assert_allclose(distance(middle, 0.05), 12 * DISTANCE / FOCAL - FAR, atol=0.01)
    np.testing.assert_array_equal(distance(rim, 0.05), distance(rim, 0.15))
    assert distance(rim, 0.05) < 0


def test_points_that_no_view_sees_are_outside(sphere_views):
    assert hull_signed_distance(np.array([[0.0, 50, 0]], np.float32), *sphere_views, disagree=0.1)[0] > 0

"""Crops: where points land, against cv2.projectPoints, and what is cut."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from preprocessing.condition import camera_matrix, new_camera, raw_to_target
from preprocessing.crop import (
    Crop,
    box_corners,
    box_region,
    crop_image,
    crop_intrinsics,
    grown_crop,
    photo_rectangle,
    project,
    recrop,
    square_crop,
    whole_pixels,
)
from preprocessing.masks.views import camera_to_unit
from scan2twin.capture.models import Intrinsics, ObjectBox
from scan2twin.frames import SourceCamera

OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0])
K = Intrinsics(fx=500.0, fy=490.0, cx=318.0, cy=242.0)


def camera_to_reference(angles: tuple[float, float, float], position: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("YXZ", angles, degrees=True).as_matrix()
    matrix[:3, 3] = position
    return matrix


def opencv_projection(points: np.ndarray, pose: np.ndarray, intrinsics: Intrinsics, lens: list[float]) -> np.ndarray:
    rotation = OPENGL_TO_OPENCV @ pose[:3, :3].T
    pixels, _ = cv2.projectPoints(
        points, cv2.Rodrigues(rotation)[0], -rotation @ pose[:3, 3], camera_matrix(intrinsics), np.array(lens)
    )
    return pixels.reshape(-1, 2) + 0.5


def points_before(pose: np.ndarray, count: int = 100) -> np.ndarray:
    rng = np.random.default_rng(3)
    in_camera = np.column_stack([rng.uniform(-0.3, 0.3, (count, 2)), -rng.uniform(0.8, 2, count)])
    return in_camera @ pose[:3, :3].T + pose[:3, 3]


@pytest.mark.parametrize("lens", [[], [0.1, -0.2, 0.001, 0.002]])
def test_from_raw_pixels_through_both_stages_to_the_crop(lens: list[float]) -> None:
    pose = camera_to_reference((130, -25, 8), (0.4, 0.9, -1.1))
    points = points_before(pose)
    source = SourceCamera(width=640, height=480, intrinsics=K, distortion=lens)
    target = new_camera(source, 400)
    crop, resolution = Crop(-13, 40, 207), 256
    square = crop_intrinsics(target.intrinsics, crop, resolution)

    raw = opencv_projection(points, pose, K, lens)
    followed = (raw_to_target(raw, source, target) - [crop.left, crop.top]) * resolution / crop.side
    projected, depth = project(points, pose, square)
    assert depth.min() > 0
    assert np.abs(projected - followed).max() < 0.05
    assert np.abs(projected - opencv_projection(points, pose, square, [])).max() < 1e-6


@settings(deadline=None)
@given(
    left=st.integers(-500, 500), top=st.integers(-500, 500), side=st.integers(1, 2000),
    resolution=st.integers(64, 2048), u=st.floats(-1000, 1000), v=st.floats(-1000, 1000),
)  # fmt: skip
def test_a_crops_intrinsics_see_each_ray_where_the_crop_shows_it(
    left: int, top: int, side: int, resolution: int, u: float, v: float
) -> None:
    square = crop_intrinsics(K, Crop(left, top, side), resolution)
    x, y = (u - K.cx) / K.fx, (v - K.cy) / K.fy
    scale = resolution / side
    assert square.fx * x + square.cx == pytest.approx((u - left) * scale, abs=1e-6 * max(1, scale))
    assert square.fy * y + square.cy == pytest.approx((v - top) * scale, abs=1e-6 * max(1, scale))


@settings(deadline=None)
@given(
    x=st.floats(-100, 700), y=st.floats(-100, 500), w=st.floats(5, 400), h=st.floats(5, 400), margin=st.floats(0, 0.5)
)
def test_a_crop_holds_the_visible_box_and_stays_inside_where_it_fits(
    x: float, y: float, w: float, h: float, margin: float
) -> None:
    width, height = 640, 480
    corners = np.array([[x, y], [x + w, y], [x, y + h], [x + w, y + h]])
    crop = square_crop(corners, width, height, margin)
    low, high = np.maximum(corners.min(0), 0), np.minimum(corners.max(0), [width, height])
    if crop is None:
        assert (high - low).min() < 1
        return
    assert crop.left <= low[0] + 1
    assert crop.top <= low[1] + 1
    assert crop.left + crop.side >= high[0] - 1
    assert crop.top + crop.side >= high[1] - 1
    if crop.side <= height:
        assert crop.left >= 0
        assert crop.top >= 0
        assert crop.left + crop.side <= width
        assert crop.top + crop.side <= height


def test_beyond_the_photo_is_no_object_and_the_photos_border_goes_on() -> None:
    photo = np.full((40, 60, 3), 100, np.uint8)
    photo[:, -1] = [200, 10, 10]
    mask = np.full((40, 60), 255, np.uint8)
    crop = Crop(30, -10, 60)
    square, square_mask = crop_image(photo, crop, 60), crop_image(mask, crop, 60)
    assert np.all(square[15, 30:] == [200, 10, 10])
    assert np.all(square_mask[:10] == 0)
    assert np.all(square_mask[10:50, :30] == 255)
    assert np.all(square_mask[:, 30:] == 0)


@pytest.mark.parametrize(
    ("crop", "edges"),
    [
        (Crop(30, -10, 60), (0, 10, 30, 50)),
        (Crop(-7, -9, 90), (7, 9, 67, 49)),
        (Crop(5, 5, 30), (0, 0, 30, 30)),
    ],
)
@pytest.mark.parametrize("resolution", [60, 90, 33])
def test_the_photos_rectangle_is_where_its_pixels_are(
    crop: Crop, edges: tuple[int, int, int, int], resolution: int
) -> None:
    """Against the crop of an image that is 255 wherever there is a photo."""
    rectangle = photo_rectangle(crop, 60, 40, resolution)
    scaled = [edge * resolution / crop.side for edge in edges]
    assert [rectangle.left, rectangle.top, rectangle.right, rectangle.bottom] == pytest.approx(scaled)
    everywhere = np.full((40, 60), 255, np.uint8)
    square = cv2.copyMakeBorder(everywhere, 90, 90, 90, 90, cv2.BORDER_CONSTANT, value=0)
    square = square[90 + crop.top :, 90 + crop.left :][: crop.side, : crop.side]
    interpolation = cv2.INTER_AREA if resolution < crop.side else cv2.INTER_NEAREST
    covered = cv2.resize(square, (resolution, resolution), interpolation=interpolation) == 255
    rows, columns = whole_pixels(rectangle)
    inside = np.zeros((resolution, resolution), bool)
    inside[rows, columns] = True
    assert not np.any(inside & ~covered)
    assert abs(np.count_nonzero(covered) - np.count_nonzero(inside)) <= 2 * resolution
    if resolution == crop.side:
        assert np.array_equal(inside, covered)


@pytest.mark.parametrize("resolution", [90, 30])
def test_a_dot_lands_where_the_crops_intrinsics_say(resolution: int) -> None:
    y, x = np.mgrid[0:80, 0:100] + 0.5
    dot = np.uint8(np.rint(255 * np.exp(-((x - 47.3) ** 2 + (y - 36.8) ** 2) / 50)))
    crop = Crop(20, 10, 60)
    square = crop_image(dot, crop, resolution).astype(np.float64)
    rows, columns = np.mgrid[0:resolution, 0:resolution] + 0.5
    centroid = [(square * columns).sum() / square.sum(), (square * rows).sum() / square.sum()]
    scale = resolution / 60
    assert centroid == pytest.approx([(47.3 - 20) * scale, (36.8 - 10) * scale], abs=0.02)


def test_the_region_is_the_boxs_silhouette() -> None:
    pose = camera_to_reference((40, -20, 0), (1.2, 0.8, 1.4))
    box = ObjectBox(center=[0.0, 0.1, 0.0], size=[0.5, 0.3, 0.4])
    intrinsics = Intrinsics(fx=300.0, fy=300.0, cx=128.0, cy=128.0)
    region = box_region(project(box_corners(box), pose, intrinsics)[0], 256)
    inside = np.random.default_rng(0).uniform(-0.499, 0.499, (20000, 3)) * box.size + box.center
    pixels, _ = project(inside, pose, intrinsics)
    hit = np.zeros_like(region)
    hit[tuple(pixels.astype(int).T[::-1])] = True
    assert not np.any(hit & ~cv2.dilate(region.astype(np.uint8), np.ones((3, 3))).astype(bool))
    assert np.count_nonzero(region & ~cv2.dilate(hit.astype(np.uint8), np.ones((7, 7))).astype(bool)) < 30


def test_cameras_move_to_the_unit_frame_without_being_scaled() -> None:
    pose = camera_to_reference((10, 20, 30), (1.0, 2.0, 3.0))
    unit_to_reference = np.diag([0.25, 0.25, 0.25, 1.0])
    unit_to_reference[:3, 3] = [0.5, -1.0, 2.0]
    unit = camera_to_unit(pose, unit_to_reference)
    assert np.allclose(unit[:3, :3], pose[:3, :3])
    assert np.allclose(unit[:3, 3], [(1 - 0.5) * 4, (2 + 1) * 4, (3 - 2) * 4])


@pytest.mark.parametrize(
    ("crop", "growth"), [(Crop(200, 150, 100), 1.5), (Crop(5, 300, 150), 1.4), (Crop(-40, -60, 560), 1.3)]
)
def test_a_grown_crop_holds_the_crop_and_leads_back_to_it(crop: Crop, growth: float) -> None:
    width, height = 640, 480
    wide = grown_crop(crop, growth, width, height)
    assert wide.side == round(growth * crop.side)
    assert wide.left <= crop.left
    assert wide.top <= crop.top
    assert wide.left + wide.side >= crop.left + crop.side
    assert wide.top + wide.side >= crop.top + crop.side
    if wide.side <= height:
        assert wide.left >= 0
        assert wide.top + wide.side <= height
    y, x = np.mgrid[0:height, 0:width]
    scene = np.uint8(127 + 60 * np.sin(x / 25) + 60 * np.cos(y / 31))  # smooth: what is left is where it lies
    found = recrop(crop_image(scene, wide, 256).astype(np.float32), wide, crop)
    photo = whole_pixels(photo_rectangle(crop, width, height, 256))
    difference = np.abs(found - crop_image(scene, crop, 256))[photo][4:-4, 4:-4]
    assert difference.max() < 4  # half a pixel of 256 would be more

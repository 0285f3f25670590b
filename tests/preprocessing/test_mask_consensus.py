"""The visual hull of a ball, analytically known, and masks brought into agreement by it."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from preprocessing.crop import Crop, project
from preprocessing.images import UInt8
from preprocessing.masks.consensus import VOTE_RESOLUTION, consensus, find_body, refine_mask, silhouette, trust
from preprocessing.masks.hull import draw, grid_over, largest_body, projection, shell, vote
from preprocessing.masks.views import View
from scan2twin.capture.models import Intrinsics, Pose
from scan2twin.frames import ConditionedFrame, PosedFrame, SourceCamera

R = VOTE_RESOLUTION
K = Intrinsics(fx=300.0, fy=300.0, cx=R / 2, cy=R / 2)
RADIUS = 0.2
LOW, HIGH = np.array([-0.3, -0.3, -0.3]), np.array([0.3, 0.3, 0.3])


def look_at_origin(position: np.ndarray) -> np.ndarray:
    """Camera to reference (OpenGL axes) at `position`, looking at the origin."""
    back = position / np.linalg.norm(position)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, :3] = np.column_stack([right, np.cross(back, right), back])
    matrix[:3, 3] = position
    return matrix


def ball_mask(pose: np.ndarray) -> UInt8:
    """Pixels whose ray meets the ball of `RADIUS` round the origin."""
    y, x = np.mgrid[0:R, 0:R] + 0.5
    rays = np.stack([(x - K.cx) / K.fx, -(y - K.cy) / K.fy, -np.ones_like(x)], -1) @ pose[:3, :3].T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    along = rays @ -pose[:3, 3]
    return np.uint8(255 * (pose[:3, 3] @ pose[:3, 3] - along**2 < RADIUS**2))


def ring_of_views(count: int = 20) -> list[View]:
    views = []
    for i in range(count):
        angle = 2 * np.pi * i / count
        pose = look_at_origin(np.array([np.cos(angle), [0.2, 0.7, -0.3][i % 3], np.sin(angle)]))
        frame = PosedFrame(
            index=i, file=f"images/{i:06d}.jpg", width=R, height=R, intrinsics=K, camera_to_reference=pose.tolist()
        )
        conditioned = ConditionedFrame(
            index=i, file=frame.file, width=R, height=R, intrinsics=K, anchor=None, tracking="normal", t=float(i),
            pose_world=Pose(p=[0.0, 0.0, 0.0], q=[0.0, 0.0, 0.0, 1.0]),
            source=SourceCamera(width=R, height=R, intrinsics=K, distortion=[]),
        )  # fmt: skip
        views.append(View(frame, conditioned, Crop(0, 0, R), np.ones((R, R), bool)))
    return views


VIEWS = ring_of_views()
MASKS = [ball_mask(np.array(view.frame.camera_to_reference)) for view in VIEWS]


def iou(one: UInt8, other: UInt8) -> float:
    a, b = one >= 128, other >= 128
    return float((a & b).sum() / (a | b).sum())


def test_the_projection_matrix_agrees_with_the_camera_model() -> None:
    pose = np.array(VIEWS[1].frame.camera_to_reference)
    points = np.random.default_rng(0).uniform(-0.3, 0.3, (50, 3))
    u, v, depth = projection(pose, K) @ np.column_stack([points, np.ones(50)]).T
    pixels, expected_depth = project(points, pose, K)
    assert np.allclose(np.column_stack([u / depth, v / depth]), pixels)
    assert np.allclose(depth, expected_depth)


def test_votes_count_the_views_that_see_a_voxel_and_no_others() -> None:
    grid = grid_over(LOW, HIGH, 30)
    projections = np.stack([projection(np.array(view.frame.camera_to_reference), K) for view in VIEWS[:4]])
    masks = np.stack(MASKS[:4])
    known = np.ones(masks.shape, bool)
    known[3] = False
    weights = np.array([1, 2, 0.5, 1.5], np.float32)
    shares = vote(grid, masks, known, projections, weights)
    rng = np.random.default_rng(0)
    for x, y, z in rng.integers(0, 30, (100, 3)):
        point = np.array([x, y, z]) * grid.step + grid.origin
        agreed = 0.0
        for i in range(3):
            pixel = project(point[None], np.array(VIEWS[i].frame.camera_to_reference), K)[0][0].astype(int)
            agreed += weights[i] * (masks[i][pixel[1], pixel[0]] > 0)
        assert shares[x, y, z] == pytest.approx(agreed / 3.5, abs=1e-6)

    known[:3, :, : R // 2] = False  # what only few views see needs more than their word
    known[0] = False
    known[1] = False
    half = vote(grid, np.full_like(masks, 255), known, projections, weights)
    assert set(np.round(np.unique(half), 4).tolist()) == {0.0, 0.25}  # 0.5 of the quorum, 0.4 · 5


def test_the_hull_of_a_balls_silhouettes_is_the_ball() -> None:
    body = find_body(VIEWS, MASKS, LOW, HIGH)
    # Generous by a voxel and a half on each side (voxels of 0.6 / 48), and by what few views leave uncarved.
    assert np.abs(body).max() == pytest.approx(RADIUS, abs=0.06)
    hull, agreements = consensus(VIEWS, MASKS, LOW, HIGH)
    assert np.linalg.norm(hull.inner, axis=1).min() > RADIUS - 3 * hull.step
    assert agreements.min() > 0.92
    assert trust(agreements).min() == 1


def test_wrong_masks_are_found_out_and_replaced() -> None:
    masks = list(MASKS)
    masks[4] = np.zeros((R, R), np.uint8)
    cv2.circle(masks[4], (20, 30), 12, 255, -1)  # elsewhere
    masks[11] = cv2.dilate(MASKS[11], np.ones((41, 41), np.uint8))  # far too large
    hull, agreements = consensus(VIEWS, masks, LOW, HIGH)
    weights = trust(agreements)
    assert np.flatnonzero(weights < 0.5).tolist() == [4, 11]
    for i in (4, 11):
        photo = np.full((R, R, 3), 60, np.uint8)
        photo[MASKS[i] > 0] = [200, 120, 80]
        photo = cv2.GaussianBlur(photo, (0, 0), 0.8)
        refined = refine_mask(photo, masks[i], VIEWS[i], hull, trusted=False)
        assert iou(refined, MASKS[i]) > 0.95
        assert np.array_equal(refined, refine_mask(photo, masks[i], VIEWS[i], hull, trusted=False))


def test_a_trusted_mask_loses_its_excess_and_regains_its_core() -> None:
    hull, _ = consensus(VIEWS, MASKS, LOW, HIGH)
    mask = MASKS[0].copy()
    mask[R // 2 - 12 : R // 2 + 12, R // 2 - 12 : R // 2 + 12] = 0  # a hole that no other view has
    cv2.line(mask, (R // 2, R // 2 + 40), (R // 2, R - 5), 255, 7)  # a stalk that no other view has
    photo = np.full((R, R, 3), 60, np.uint8)
    photo[MASKS[0] > 0] = [200, 120, 80]
    refined = refine_mask(photo, mask, VIEWS[0], hull, trusted=True)
    assert iou(mask, MASKS[0]) < 0.94
    assert iou(refined, MASKS[0]) > 0.97


def test_beyond_the_photo_a_view_says_nothing() -> None:
    """One photo begins in the middle of the ball: the empty half of its mask is no disagreement and stays empty."""
    first = R // 2 - 10  # the crop's first column that the photo covers
    frame = VIEWS[0].frame.model_copy(
        update={"width": R - first, "intrinsics": K.model_copy(update={"cx": K.cx - first})}
    )
    cut = replace(VIEWS[0], frame=frame, crop=Crop(-first, 0, R))
    photo = np.full((R, R, 3), 60, np.uint8)
    photo[MASKS[0] > 0] = [200, 120, 80]
    photo[:, :first] = photo[:, [first]]  # as crop_image goes on
    seen_mask = MASKS[0].copy()
    seen_mask[:, :first] = 0
    hull, agreements = consensus([cut, *VIEWS[1:]], [seen_mask, *MASKS[1:]], LOW, HIGH)
    assert agreements.min() > 0.92
    whole, _ = consensus(VIEWS, MASKS, LOW, HIGH)
    assert abs(len(hull.inner) - len(whole.inner)) < 0.02 * len(whole.inner)
    for trusted in (True, False):
        refined = refine_mask(photo, seen_mask, cut, hull, trusted)
        assert not refined[:, :first].any()
        assert iou(refined[:, first:], MASKS[0][:, first:]) > 0.97


def test_masks_without_a_common_body_give_an_empty_hull() -> None:
    rng = np.random.default_rng(0)
    masks = []
    for _ in VIEWS:
        mask = np.zeros((R, R), np.uint8)
        cv2.circle(mask, rng.integers(10, R - 10, 2).tolist(), 8, 255, -1)
        masks.append(mask)
    assert len(find_body(VIEWS, masks, LOW, HIGH)) == 0
    assert len(consensus(VIEWS, masks, LOW, HIGH)[0].inner) == 0


def test_drawn_voxels_close_up_into_a_silhouette() -> None:
    grid = grid_over(LOW, HIGH, 60)
    points = np.argwhere(np.ones(grid.shape)) * grid.step + grid.origin
    ball = (np.linalg.norm(points, axis=1) < RADIUS).reshape(grid.shape)
    image = silhouette(shell(grid, ball), grid.step, VIEWS[2], R)
    assert iou(image, MASKS[2]) > 0.93
    assert not np.any((image == 0) & (cv2.erode(MASKS[2], np.ones((9, 9), np.uint8)) > 0))
    behind = draw(shell(grid, ball), grid.step, projection(look_at_origin(np.array([0.1, 0.1, 5.0])), K) * -1, 300.0, R)
    assert not behind.any()


def test_only_the_largest_body_stays() -> None:
    occupied = np.zeros((20, 20, 20), bool)
    occupied[2:9, 2:9, 2:9] = True
    expected = occupied.copy()
    occupied[15:18, 15:18, 15:18] = True
    assert np.array_equal(largest_body(occupied), expected)

"""Which frames are kept: blur, repeats, and the sides nothing else shows."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from preprocessing.condition import camera_places
from preprocessing.frame_selection import Selection, select_frames
from scan2twin.capture.models import Intrinsics, Pose, TrackedAnchor
from scan2twin.frames import ConditionedFrame, SourceCamera


def ring(angles_deg: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Camera centres 0.6 m round the origin, and their optical axes."""
    angle = np.radians(angles_deg)
    outward = np.stack([np.sin(angle), np.zeros(len(angle)), np.cos(angle)], 1)
    return 0.6 * outward, -outward


def select(
    sharpness: np.ndarray, position: np.ndarray, forward: np.ndarray, min_spacing: float = 0.15, *, metric: bool = True
) -> Selection:
    return select_frames(
        sharpness, position, forward, metric=metric, min_sharpness=0.25, min_spacing=min_spacing
    )  # fmt: skip


EVERY_TEN = [10.0 * k for k in range(36)]


def test_an_even_walk_keeps_every_frame() -> None:
    assert select(np.full(36, 100.0), *ring(EVERY_TEN)).dropped == set()


def test_of_an_object_turned_over_the_same_place_shows_another_side() -> None:
    position, forward = ring(EVERY_TEN + EVERY_TEN[:10])
    sharpness = np.full(46, 100.0)
    sharpness[40] = 5
    passes = ["a0"] * 36 + ["a1"] * 10
    selection = select_frames(
        sharpness, position, forward, metric=True, min_sharpness=0.25, min_spacing=0.15, passes=passes
    )  # fmt: skip
    assert (selection.repeated, set(selection.blurred), set(selection.needed)) == ({}, {40}, set())
    assert len(select(sharpness, position, forward).repeated) == 9


def test_of_frames_from_one_place_the_sharpest_is_kept() -> None:
    angles = [*EVERY_TEN[:10], 90.5, 89.6, *EVERY_TEN[10:]]  # three at 90°
    sharpness = np.full(38, 100.0)
    sharpness[10] = 120
    assert select(sharpness, *ring(angles)).repeated == {9: 10, 11: 10}
    assert select(sharpness, *ring(angles), min_spacing=0.0).repeated == {}


def test_another_look_from_the_same_place_is_no_repeat() -> None:
    position, forward = ring([*EVERY_TEN, 0.1])
    forward[-1] = Rotation.from_euler("y", 30, degrees=True).apply(forward[-1])
    assert select(np.full(37, 100.0), position, forward).repeated == {}


def test_a_blurred_frame_goes_where_others_show_that_side() -> None:
    sharpness = np.full(36, 100.0)
    sharpness[[4, 20]] = 5
    selection = select(sharpness, *ring(EVERY_TEN))
    assert list(selection.blurred) == [4, 20]
    assert selection.blurred[4] == 0.05
    assert selection.needed == {}


def test_a_blurred_frame_that_alone_shows_a_side_stays() -> None:
    angles = [a for a in EVERY_TEN if not 150 <= a <= 210]  # nobody stood behind …
    sharpness = np.full(len(angles) + 1, 100.0)
    sharpness[15] = 5
    selection = select(sharpness, *ring([*angles[:15], 180, *angles[15:]]))  # … but for one, in a hurry
    assert selection.needed == {15: 0.05}
    assert selection.dropped == set()


def test_where_poses_tell_nothing_only_blur_counts() -> None:
    rng = np.random.default_rng(0)
    position, forward = rng.normal(0, 0.002, (40, 3)), np.tile([0.0, 0.0, -1.0], (40, 1))
    sharpness = np.full(40, 100.0)
    sharpness[7] = 2
    turntable = select(sharpness, position, forward, min_spacing=0.9)
    assert turntable.dropped == {7}
    assert select(sharpness, position, forward, min_spacing=0.9, metric=False).repeated != {}  # units are unknown
    unknown = select(sharpness, np.full((40, 3), np.nan), forward)
    assert unknown.dropped == {7}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 359), min_size=2, max_size=40), st.integers(0, 2**32 - 1), st.floats(0, 0.9))
def test_what_is_dropped_has_a_sharper_frame_near(angles: list[float], seed: int, min_spacing: float) -> None:
    position, forward = ring(angles)
    sharpness = np.random.default_rng(seed).uniform(50, 100, len(angles))
    selection = select(sharpness, position, forward, min_spacing)
    gaps = np.linalg.norm(position[:, None] - position, axis=2)
    np.fill_diagonal(gaps, np.inf)
    for row, other in selection.repeated.items():
        assert other not in selection.dropped
        assert sharpness[other] >= sharpness[row]
        assert gaps[row, other] <= min_spacing * gaps.min(1).max()
    assert selection.blurred == {}


def test_places_are_the_anchor_s_whatever_the_world_does() -> None:
    rng = np.random.default_rng(1)
    position, forward = ring([0, 40, 80])
    frames = []
    for k in range(3):
        looking = Rotation.align_vectors([forward[k], [0, 1, 0]], [[0, 0, -1], [0, 1, 0]])[0]
        world, shift = Rotation.random(random_state=k), rng.normal(0, 3, 3)
        anchor = TrackedAnchor(id="a0", tracked=True, p=shift.tolist(), q=world.as_quat().tolist())
        pose = Pose(p=(world.apply(position[k]) + shift).tolist(), q=(world * looking).as_quat().tolist())
        intrinsics = Intrinsics(fx=1.0, fy=1.0, cx=1.0, cy=1.0)
        source = SourceCamera(width=2, height=2, intrinsics=intrinsics, distortion=[])
        frames.append(
            ConditionedFrame(
                index=k, file=f"images/{k:06d}.jpg", width=2, height=2, intrinsics=intrinsics, pose_world=pose,
                anchor=anchor, tracking="normal", t=float(k), source=source,
            )
        )  # fmt: skip
    found_position, found_forward = camera_places(frames)
    np.testing.assert_allclose(found_position, position, atol=1e-12)
    np.testing.assert_allclose(found_forward, forward, atol=1e-12)
    frames[1] = frames[1].model_copy(update={"anchor": None})
    assert np.isnan(camera_places(frames)[0]).all(axis=1).tolist() == [False, True, False]

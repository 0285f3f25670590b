"""Pose compensation against 4×4 algebra in float64, the laws it must keep, and a capture with known truth."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from preprocessing.compensate_poses import (
    anchor_tilt_deg,
    find_corrections,
    pose_matrices,
    relative_poses,
    run,
    smooth_anchor,
    unit_to_reference,
)
from preprocessing.object_box import box_from_cameras, nearest_point_to_lines
from scan2twin.capture.models import Intrinsics, ObjectBox, Pose, TrackedAnchor
from scan2twin.capture.reader import read_capture
from scan2twin.config import CompensatePosesConfig
from scan2twin.errors import CaptureError
from scan2twin.frames import ConditionedFrame, ConditionedFrames, PosedFrames, SourceCamera
from scan2twin.progress import LogProgress
from scan2twin.stages import StageInputs, StageResult

SPOT = Path(__file__).parents[1] / "data/spot-capture"

vectors = arrays(np.float64, 3, elements=st.floats(-5, 5))
# Raw quaternions with every sign and size, near rotations by 0 and by π too.
quaternions = arrays(np.float64, 4, elements=st.floats(-1, 1)).filter(lambda q: np.linalg.norm(q) > 0.1)
rotations = quaternions.map(Rotation.from_quat) | st.sampled_from(
    [Rotation.from_rotvec([angle, 0, 0]) for angle in (0, 1e-12, 1e-7, math.pi - 1e-7, math.pi)]
)
rigid = st.tuples(rotations, vectors)


def matrix(rotation: Rotation, position: np.ndarray) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = rotation.as_matrix(), position
    return result


def stack(poses: list[tuple[Rotation, np.ndarray]]) -> tuple[Rotation, np.ndarray]:
    return Rotation.concatenate([rotation for rotation, _ in poses]), np.array([position for _, position in poses])


@given(rigid, rigid)
def test_relative_poses_agree_with_matrix_algebra(anchor, camera):
    relative = pose_matrices(*relative_poses(*stack([anchor]), *stack([camera])))[0]
    np.testing.assert_allclose(relative, np.linalg.inv(matrix(*anchor)) @ matrix(*camera), atol=1e-9)


@given(rigid, rigid, st.booleans())
def test_the_sign_of_a_quaternion_does_not_matter(anchor, camera, flip):
    flipped = Rotation.from_quat(-anchor[0].as_quat()), anchor[1]
    np.testing.assert_allclose(
        pose_matrices(*relative_poses(*stack([flipped]), *stack([camera]))),
        pose_matrices(*relative_poses(*stack([anchor]), *stack([camera]))),
        atol=1e-12,
    )


def orbit(count: int) -> tuple[Rotation, np.ndarray]:
    """N cameras to world, on a circle of radius 0.6 m round the origin, looking at it."""
    angle = np.linspace(0, 2 * math.pi, count, endpoint=False)
    position = 0.6 * np.stack([np.sin(angle), np.full(count, 0.4), np.cos(angle)], axis=1)
    back = position / np.linalg.norm(position, axis=1, keepdims=True)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return Rotation.from_matrix(np.stack([right, np.cross(back, right), back], axis=2)), position


def conditioned(
    cameras: tuple[Rotation, np.ndarray], anchors: tuple[Rotation, np.ndarray] | None, **values: object
) -> ConditionedFrames:
    def pose(poses: tuple[Rotation, np.ndarray], k: int) -> dict[str, list[float]]:
        return {"p": poses[1][k].tolist(), "q": poses[0][k].as_quat().tolist()}

    intrinsics = Intrinsics(fx=700.0, fy=700.0, cx=300.0, cy=400.0)
    frames = [
        ConditionedFrame(
            index=k,
            file=f"images/{k:06d}.jpg",
            width=600,
            height=800,
            intrinsics=intrinsics,
            pose_world=Pose(**pose(cameras, k)),
            anchor=None if anchors is None else TrackedAnchor(id="a0", tracked=True, **pose(anchors, k)),
            tracking="normal",
            t=float(k),
            source=SourceCamera(width=600, height=800, intrinsics=intrinsics, distortion=[]),
        )
        for k in range(len(cameras[1]))
    ]
    document: dict[str, object] = {
        "capture_id": "test",
        "reference_anchor": None if anchors is None else "a0",
        "object": ObjectBox(center=[0.0, 0.1, 0.0], size=[0.2, 0.4, 0.1]),
        "metric": True,
    }
    return ConditionedFrames(frames=frames, **(document | values))


def compensate(tmp_path: Path, document: ConditionedFrames, **config: bool) -> tuple[StageResult, PosedFrames]:
    document.write(tmp_path / "cameras.json")
    result = run(StageInputs({"condition": tmp_path}), tmp_path, CompensatePosesConfig(**config), LogProgress())
    return result, PosedFrames.read(tmp_path / "poses.json")


def matrices(posed: PosedFrames) -> np.ndarray:
    return np.array([frame.camera_to_reference for frame in posed.frames])


def moved(
    poses: tuple[Rotation, np.ndarray], changes: list[tuple[Rotation, np.ndarray]]
) -> tuple[Rotation, np.ndarray]:
    """Apply one rigid change of the world frame a row."""
    rotation, position = stack(changes)
    return rotation * poses[0], rotation.apply(poses[1]) + position


@settings(max_examples=30, deadline=None)
@given(st.lists(rigid, min_size=3, max_size=3), st.lists(st.integers(0, 2), min_size=12, max_size=12))
def test_any_rigid_change_of_the_world_frame_at_any_frames_changes_nothing(tmp_path_factory, frames, which):
    # A change too small to be told from jitter is smoothed as jitter.
    assume(not any(1e-9 < _size(a, b) < 0.03 for a in frames for b in frames))
    folder = tmp_path_factory.mktemp("compensate")
    cameras = orbit(12)
    anchors = Rotation.from_rotvec([[0.1, 0.2, 0.0]] * 12), np.tile([0.3, -0.1, 0.2], (12, 1))
    _, before = compensate(folder, conditioned(cameras, anchors))
    changes = [frames[k] for k in which]
    result, after = compensate(folder, conditioned(moved(cameras, changes), moved(anchors, changes)))
    np.testing.assert_allclose(matrices(after), matrices(before), atol=1e-9)
    assert len(result.metrics["corrections"]) == sum(_size(frames[a], frames[b]) > 0.03 for a, b in pairwise(which))


def _size(a: tuple[Rotation, np.ndarray], b: tuple[Rotation, np.ndarray]) -> float:
    """How far two changes move the anchor of the test above apart, metres plus radians."""
    anchor = np.array([0.3, -0.1, 0.2])
    offset = a[0].apply(anchor) + a[1] - b[0].apply(anchor) - b[1]
    return float(np.linalg.norm(offset) + (a[0] * b[0].inv()).magnitude())


@settings(max_examples=30, deadline=None)
@given(rigid)
def test_another_anchor_gives_the_same_cameras_seen_from_it(tmp_path_factory, change):
    folder = tmp_path_factory.mktemp("compensate")
    cameras, anchor = orbit(12), (Rotation.from_rotvec([0.1, 0.2, 0.0]), np.array([0.3, -0.1, 0.2]))
    other = anchor[0] * change[0], anchor[0].apply(change[1]) + anchor[1]
    _, of_first = compensate(folder, conditioned(cameras, stack([anchor] * 12)))
    _, of_other = compensate(folder, conditioned(cameras, stack([other] * 12)))
    np.testing.assert_allclose(matrix(*change) @ matrices(of_other), matrices(of_first), atol=1e-9)


def test_without_an_anchor_world_poses_are_taken_as_they_are(tmp_path):
    cameras = orbit(12)
    _, posed = compensate(tmp_path, conditioned(cameras, None))
    np.testing.assert_allclose(matrices(posed), pose_matrices(*cameras), atol=1e-12)


def test_a_frame_without_its_anchor_is_named(tmp_path):
    document = conditioned(orbit(12), (Rotation.identity(12), np.zeros((12, 3))))
    document.frames[3].anchor = None
    with pytest.raises(CaptureError, match=r"frames 3 have no pose of the reference anchor 'a0'"):
        compensate(tmp_path, document)
    assert not (tmp_path / "poses.json").exists()


class TestUnitBox:
    @given(vectors, arrays(np.float64, 3, elements=st.floats(0.01, 5)))
    def test_the_box_becomes_centred_with_longest_side_1(self, center, size):
        box = ObjectBox(center=center.tolist(), size=size.tolist())
        to_unit = np.linalg.inv(unit_to_reference(box))
        corners = np.array([center + 0.5 * size * [x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        unit = corners @ to_unit[:3, :3].T + to_unit[:3, 3]
        np.testing.assert_allclose(unit.mean(axis=0), 0, atol=1e-9)
        assert np.ptp(unit, axis=0).max() == pytest.approx(1)

    def test_lines_meet_where_an_independent_minimiser_finds_it(self):
        rng = np.random.default_rng(3)
        origins = rng.normal(size=(40, 3))
        directions = np.array([0.2, -0.1, 0.3]) + 0.02 * rng.normal(size=(40, 3)) - origins
        directions[:4] = rng.normal(size=(4, 3))  # a few cameras look elsewhere
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)

        def distance(point: np.ndarray) -> float:
            return float(np.linalg.norm(np.cross(point - origins, directions), axis=1).sum())

        expected = minimize(distance, origins.mean(axis=0), method="Nelder-Mead", options={"xatol": 1e-8}).x
        found = nearest_point_to_lines(origins, directions)
        np.testing.assert_allclose(found, expected, atol=1e-4)

    def test_a_capture_without_a_box_gets_one_where_its_cameras_look(self, tmp_path):
        result, posed = compensate(tmp_path, conditioned(orbit(24), None, object=None))
        np.testing.assert_allclose(posed.object.center, 0, atol=1e-9)
        radius = 0.6 * math.hypot(1, 0.4)
        visible = 2 * radius * math.sin(math.atan(300 / 700))  # widest ball in the narrower field of view
        assert posed.object.size == pytest.approx([0.8 * visible] * 3)
        assert math.sqrt(3) / 2 * posed.object.size[0] < radius, "a camera stands inside the box"
        assert "no object box" in result.warnings[0]

    def test_cameras_that_look_the_same_way_or_apart_give_no_box(self):
        frames = conditioned(orbit(12), None).frames
        ahead = pose_matrices(Rotation.identity(12), np.arange(36.0).reshape(12, 3))
        with pytest.raises(CaptureError, match="all cameras look the same way"):
            box_from_cameras(ahead, frames)
        outward = pose_matrices(*orbit(12)) @ np.diag([-1.0, 1, -1, 1])
        with pytest.raises(CaptureError, match="cameras look away from the rest"):
            box_from_cameras(outward, frames)


class TestSmoothing:
    def jittering(self, count: int = 60) -> tuple[Rotation, np.ndarray]:
        rng = np.random.default_rng(0)
        steps = Rotation.from_rotvec(np.radians(0.05) * rng.normal(size=(count, 3)))
        drift = np.linspace(0, 1, count)[:, None] * [0.02, 0.01, 0.0]
        return steps * Rotation.from_euler("y", 40, degrees=True), drift + 5e-4 * rng.normal(size=(count, 3))

    def test_jitter_alone_is_no_correction(self):
        assert find_corrections(*self.jittering()) == []

    def test_a_correction_is_found_with_its_size(self):
        rotation, position = self.jittering()
        turn = Rotation.from_rotvec(np.repeat([[0, 0, 0], [0, np.radians(2.0), 0]], 30, axis=0))
        found = find_corrections(turn * rotation, turn.apply(position) + np.repeat([[0, 0, 0], [0.05, 0, 0]], 30, 0))
        assert [correction.row for correction in found] == [30]
        assert found[0].translation_m == pytest.approx(0.05, abs=0.004)
        assert found[0].rotation_deg == pytest.approx(2.0, abs=0.2)

    def test_corrections_at_every_frame_are_all_found(self):
        rotation, position = self.jittering()
        position[::2] += [0.05, 0, 0]
        assert len(find_corrections(rotation, position)) == 59

    def test_jitter_shrinks_and_drift_stays(self):
        rotation, position = self.jittering()
        smooth_rotation, smooth_position = smooth_anchor(rotation, position, [])
        drift = np.linspace(0, 1, 60)[:, None] * [0.02, 0.01, 0.0]
        assert (
            np.linalg.norm(smooth_position - drift, axis=1).mean()
            < 0.6 * np.linalg.norm(position - drift, axis=1).mean()
        )
        still = Rotation.from_euler("y", 40, degrees=True).inv()
        assert (smooth_rotation * still).magnitude().mean() < 0.6 * (rotation * still).magnitude().mean()

    def test_steady_drift_passes_exactly(self):
        rotvec = np.linspace(0, 0.02, 20)[:, None] * [0.0, 1.0, 0.0]
        position = np.linspace(0, 1, 20)[:, None] * [0.02, 0.01, 0.0]
        rotation, smooth = smooth_anchor(Rotation.from_rotvec(rotvec), position, [7])
        np.testing.assert_allclose(smooth, position, atol=1e-12)
        np.testing.assert_allclose(rotation.as_rotvec(), rotvec, atol=1e-9)

    def test_nothing_is_averaged_across_a_correction(self):
        rotation, position = self.jittering()
        whole = smooth_anchor(rotation, position, [25])[1]
        changed = position.copy()
        changed[25:] += [0.1, 0.2, 0.3]
        np.testing.assert_allclose(smooth_anchor(rotation, changed, [25])[1][:25], whole[:25], atol=1e-12)

    def test_pieces_of_one_and_two_frames(self):
        rotation, position = self.jittering(4)
        smooth = smooth_anchor(rotation, position, [1, 3])
        np.testing.assert_allclose(smooth[1], position, atol=1e-12)


def test_a_leaning_anchor_is_measured_and_told(tmp_path):
    lean = Rotation.from_euler("z", 12, degrees=True)
    assert anchor_tilt_deg(Rotation.concatenate([lean] * 3)) == pytest.approx(12)
    result, _ = compensate(tmp_path, conditioned(orbit(12), stack([(lean, np.zeros(3))] * 12)))
    assert any("leans by 12°" in warning for warning in result.warnings)


def test_frames_of_limited_tracking_count_less_and_are_named(tmp_path):
    document = conditioned(orbit(12), None)
    document.frames[5].tracking = "limited"
    result, posed = compensate(tmp_path, document)
    assert [frame.weight for frame in posed.frames].count(0.5) == 1
    assert posed.frames[5].weight == 0.5
    assert any("limited at frames 5" in warning for warning in result.warnings)


def test_far_anchors_are_told(tmp_path):
    anchors = Rotation.identity(12), np.tile([20.0, 0, 0], (12, 1))
    assert any("20 m from the anchor" in w for w in compensate(tmp_path, conditioned(orbit(12), anchors))[0].warnings)


class TestPhoneCaptureWithKnownTruth:
    """60 frames with three corrections of 7-11 cm, 1.2 mm and 0.15° noise an axis, and anchor jitter."""

    def errors(self, tmp_path: Path, **config: bool) -> tuple[np.ndarray, np.ndarray, StageResult]:
        capture = read_capture(SPOT / "capture")
        poses = [frame.pose_world for frame in capture.frames]
        anchors = [frame.anchor for frame in capture.frames]
        document = conditioned(
            (Rotation.from_quat([pose.q for pose in poses]), np.array([pose.p for pose in poses])),
            (Rotation.from_quat([a.q for a in anchors]), np.array([a.p for a in anchors])),
        )
        result, posed = compensate(tmp_path, document, **config)
        truth = json.loads((SPOT / "truth/poses.json").read_text())["frames"]
        true = np.array([frame["camera_to_anchor"] for frame in truth])
        found = matrices(posed)
        error_m = np.linalg.norm(found[:, :3, 3] - true[:, :3, 3], axis=1)
        turn = Rotation.from_matrix(found[:, :3, :3]) * Rotation.from_matrix(true[:, :3, :3]).inv()
        return error_m, np.degrees(turn.magnitude()), result

    def test_every_jump_is_gone(self, tmp_path):
        error_m, error_deg, result = self.errors(tmp_path)
        assert [c["frame"] for c in result.metrics["corrections"]] == [12, 27, 36]
        # Four standard deviations of the recorder's noise: 1.2 mm and 0.15° an axis, and the anchor's jitter.
        assert error_m.max() < 4 * 0.0015
        assert error_deg.max() < 4 * 0.17

    def test_smoothing_the_anchor_brings_the_cameras_nearer_to_the_truth(self, tmp_path):
        smooth_m, smooth_deg, _ = self.errors(tmp_path)
        raw_m, raw_deg, _ = self.errors(tmp_path, smooth_anchor=False)
        assert np.square(smooth_m).mean() < 0.9 * np.square(raw_m).mean()
        assert np.square(smooth_deg).mean() < np.square(raw_deg).mean()

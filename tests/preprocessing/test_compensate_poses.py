"""Pose compensation against 4×4 algebra in float64, the laws it must keep, and a capture with known truth."""

import json
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation, Slerp

from preprocessing.anchors import find_corrections, interpolate_poses, relative_poses, short_gaps, smooth_anchor
from preprocessing.compensate_poses import (
    anchor_tilt_deg,
    pose_matrices,
    run,
    unit_to_reference,
)
from preprocessing.frame_checks import pose_differences
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


class TestFramesWithoutAPose:
    """Guessed from their neighbours in a short gap, left out and named elsewhere."""

    def document(self, count: int = 24) -> ConditionedFrames:
        return conditioned(orbit(count), (Rotation.identity(count), np.zeros((count, 3))))

    @pytest.mark.parametrize("change", [{"anchor": None}, {"tracking": "lost"}])
    def test_one_is_guessed_from_its_neighbours(self, tmp_path, change):
        document = self.document(60)
        document.frames[3] = document.frames[3].model_copy(
            update=change | {"pose_world": Pose(p=[9.0] * 3, q=[0, 0, 0, 1])}
        )
        result, posed = compensate(tmp_path, document)
        assert [frame.index for frame in posed.frames if frame.guessed] == [3]
        true = pose_matrices(*orbit(60))[3]
        found = np.array(posed.frames[3].camera_to_reference)
        sagitta = 0.6 * (1 - math.cos(math.radians(6)))  # of the arc between the neighbours
        assert np.linalg.norm(found[:3, 3] - true[:3, 3]) == pytest.approx(sagitta, rel=1e-6)
        assert "frames 3 have no pose of their own: guessed" in result.warnings[0]
        assert result.metrics["guessed"] == 1

    def test_a_wide_turn_is_not_bridged(self, tmp_path):
        document = self.document(12)
        document.frames[3].anchor = None
        result, posed = compensate(tmp_path, document)
        assert 3 not in [frame.index for frame in posed.frames]
        assert "frame 3 is left out: no anchor was tracked, and the view turned by 6" in result.warnings[0]

    def test_long_gaps_and_ends_are_left_out_and_named(self, tmp_path):
        document = self.document(120)
        for row in (0, 50, 51, 52, 53, 119):
            document.frames[row].tracking = "lost"
        result, posed = compensate(tmp_path, document)
        assert len(posed.frames) == 114
        assert [int(warning.split()[1]) for warning in result.warnings] == [0, 50, 51, 52, 53, 119]
        assert all("the tracker lost the camera" in warning for warning in result.warnings)

    def test_limited_neighbours_are_not_built_upon(self, tmp_path):
        document = self.document(60)
        document.frames[3].tracking, document.frames[4].tracking = "lost", "limited"
        result, _ = compensate(tmp_path, document)
        assert "frame 3 is left out: the tracker lost the camera, and tracking was limited" in result.warnings[0]

    def test_an_anchor_that_was_never_tracked(self, tmp_path):
        document = self.document()
        for frame in document.frames:
            frame.anchor = None
        with pytest.raises(CaptureError, match=r"the reference anchor 'a0' was tracked in no frame"):
            compensate(tmp_path, document)
        assert not (tmp_path / "poses.json").exists()


@given(st.lists(st.booleans(), max_size=30))
def test_short_gaps_are_the_inner_runs_of_at_most_three(posed):
    text = "".join("x" if known else "." for known in posed)
    inner = [match.span() for match in re.finditer(r"(?<=x)\.{1,3}(?=x)", text)]
    assert short_gaps(posed) == [any(low <= k < high for low, high in inner) for k in range(len(posed))]


class TestSeveralAnchors:
    """A support anchor stands 0.5 m beside the reference anchor; cameras near it are taken relative to it."""

    SUPPORT = Rotation.from_euler("yx", [70, 20], degrees=True), np.array([0.5, 0.1, 0.2])  # to reference

    def document(self, count: int = 24, noise_m: float = 0.0) -> ConditionedFrames:
        """The world frame changes at random in every frame, the reference anchor jitters."""
        rng = np.random.default_rng(8)
        changes = [
            (rotation, shift)
            for rotation, shift in zip(Rotation.random(count, rng=rng), rng.normal(size=(count, 3)), strict=True)
        ]
        anchors = Rotation.identity(count), noise_m * rng.normal(size=(count, 3))
        document = conditioned(moved(orbit(count), changes), moved(anchors, changes))
        support = moved(stack([self.SUPPORT] * count), changes)
        for k, frame in enumerate(document.frames):
            pose = {"p": support[1][k].tolist(), "q": support[0][k].as_quat().tolist()}
            frame.support = [TrackedAnchor(id="s", tracked=True, **pose)]
        return document

    def test_all_agree_with_matrix_algebra_whichever_is_chosen(self, tmp_path):
        result, posed = compensate(tmp_path, self.document())
        np.testing.assert_allclose(matrices(posed), pose_matrices(*orbit(24)), atol=1e-9)
        near = np.linalg.norm(orbit(24)[1] - self.SUPPORT[1], axis=1) < np.linalg.norm(orbit(24)[1], axis=1)
        assert result.metrics["support_anchors"] == {"s": near.sum()}
        assert 0 < near.sum() < 24

    def test_a_frame_whose_reference_anchor_is_not_tracked_goes_by_the_support_anchor(self, tmp_path):
        document = self.document()
        anchor = document.frames[12].anchor
        document.frames[12].anchor = anchor.model_copy(update={"tracked": False, "p": [7.0, 7.0, 7.0]})
        document.frames[13].anchor = None
        _, posed = compensate(tmp_path, document)
        assert not any(frame.guessed for frame in posed.frames)
        np.testing.assert_allclose(matrices(posed), pose_matrices(*orbit(24)), atol=1e-9)

    def test_where_only_the_support_anchor_is_steady_near_cameras_gain(self, tmp_path):
        document = self.document(noise_m=0.004)
        near = np.linalg.norm(orbit(24)[1] - self.SUPPORT[1], axis=1) < np.linalg.norm(orbit(24)[1], axis=1)
        _, posed = compensate(tmp_path, document)
        error = np.linalg.norm(matrices(posed)[:, :3, 3] - orbit(24)[1], axis=1)
        assert np.ptp(matrices(posed)[near, :3, 3] - orbit(24)[1][near], axis=0).max() < 1e-9  # one shift for all
        assert error[near].max() < 0.004
        assert error[~near].max() > 0.004

    def test_far_and_rarely_seen_anchors_are_not_used(self, tmp_path):
        document = self.document()
        for frame in document.frames[2:]:
            frame.support = None
        assert compensate(tmp_path, document)[0].metrics["support_anchors"] == {}
        box = ObjectBox(center=[-30.0, 0.0, 0.0], size=[0.2, 0.2, 0.2])
        far = conditioned(orbit(12), stack([(Rotation.identity(), np.array([30.0, 0, 0]))] * 12), object=box)
        for frame in far.frames:
            frame.support = [TrackedAnchor(id="s", tracked=True, p=[20.0, 0, 0], q=[0, 0, 0, 1])]
        assert compensate(tmp_path, far)[0].metrics["support_anchors"] == {}

    def test_anchors_that_move_against_each_other_are_told(self, tmp_path):
        document = conditioned(orbit(12), stack([(Rotation.identity(), np.zeros(3))] * 12))
        for k, frame in enumerate(document.frames):
            frame.support = [TrackedAnchor(id="s", tracked=True, p=[0.3, 0.01 * k, 0], q=[0, 0, 0, 1])]
        result, _ = compensate(tmp_path, document)
        assert any("anchor 's' moved against the reference anchor by 3.0 cm" in w for w in result.warnings)


class TestTurnedOver:
    """A second pass goes by an anchor of its own; where that stands to the first one says nothing of the object."""

    COUNT = 30
    ANCHOR = Rotation.from_euler("y", 50, degrees=True), np.array([0.3, -0.1, 0.2])

    def document(self, **values: object) -> ConditionedFrames:
        rotation, position = self.ANCHOR
        anchors = stack([(Rotation.identity(), np.zeros(3))] * self.COUNT + [self.ANCHOR] * self.COUNT)
        own = orbit(self.COUNT)
        second = rotation * own[0], rotation.apply(own[1]) + position
        cameras = Rotation.concatenate([own[0], second[0]]), np.concatenate([own[1], second[1]])
        document = conditioned(cameras, anchors, **values)
        for frame in document.frames[self.COUNT :]:
            assert frame.anchor is not None
            frame.anchor = frame.anchor.model_copy(update={"id": "a1"})
        return document

    def test_each_pass_is_relative_to_its_own_anchor(self, tmp_path):
        result, posed = compensate(tmp_path, self.document())
        [turned] = posed.turned
        assert [frame.index for frame in turned.frames] == list(range(self.COUNT, 2 * self.COUNT))
        for one in (posed, turned):
            np.testing.assert_allclose(matrices(one), pose_matrices(*orbit(self.COUNT)), atol=1e-9)
        assert result.warnings == []

    def test_the_box_of_the_second_holds_the_object_however_it_lies(self, tmp_path):
        box = ObjectBox(center=[0.0, 0.1, 0.0], size=[0.1, 0.2, 0.2])
        _, posed = compensate(tmp_path, self.document(object=box))
        corners = np.linalg.norm(posed.object.size)
        assert posed.turned[0].object.size == pytest.approx([corners] * 3)
        looked_at = compensate(tmp_path, conditioned(orbit(self.COUNT), None, object=None))[1].object
        np.testing.assert_allclose(posed.turned[0].object.center, looked_at.center, atol=1e-6)

    def test_frames_while_it_was_turned_are_left_out_and_named(self, tmp_path):
        document = self.document()
        for row in (self.COUNT - 1, self.COUNT, 5):
            document.frames[row].anchor = None
        result, posed = compensate(tmp_path, document)
        assert [len(one.frames) for one in (posed, *posed.turned)] == [self.COUNT - 1, self.COUNT - 1]
        assert [w for w in result.warnings if "while it was turned over" in w] == [
            f"frame {row} is left out: no anchor of the object was tracked while it was turned over"
            for row in (self.COUNT - 1, self.COUNT)
        ]

    def test_a_pass_that_shows_one_side_only_is_left_out_and_named(self, tmp_path):
        document = self.document()
        result, posed = compensate(tmp_path, document.model_copy(update={"frames": document.frames[: self.COUNT + 1]}))
        assert (len(posed.frames), posed.turned) == (self.COUNT, [])
        assert f"frames {self.COUNT}, of the object turned over, are left out: object: unknown" in result.warnings[0]


class TestPoseTimes:
    @settings(deadline=None, max_examples=50)
    @given(rigid, rigid, st.floats(0.0, 1.0))
    def test_interpolation_agrees_with_scipys_slerp(self, a, b, share):
        assume((a[0].inv() * b[0]).magnitude() < math.pi - 1e-3)  # at π both ways round are right
        rotation, position = interpolate_poses(np.array([2 + 3 * share]), np.array([2.0, 5.0]), *stack([a, b]))
        expected = Slerp([2.0, 5.0], stack([a, b])[0])(2 + 3 * share)
        assert (rotation[0].inv() * expected).magnitude() < 1e-6
        np.testing.assert_allclose(position[0], (1 - share) * a[1] + share * b[1], atol=1e-9)

    @given(rigid, rigid)
    def test_samples_come_back_and_signs_do_not_matter(self, a, b):
        times = np.array([0.0, 1.0])
        flipped = Rotation.concatenate([a[0], Rotation.from_quat(-b[0].as_quat())])
        for rotations in (stack([a, b])[0], flipped):
            rotation, position = interpolate_poses(times, times, rotations, stack([a, b])[1])
            assert (rotation.inv() * stack([a, b])[0]).magnitude().max() < 1e-6
            np.testing.assert_allclose(position, stack([a, b])[1], atol=1e-9)

    def test_poses_are_taken_at_the_images_times(self, tmp_path):
        """A camera on an arc; poses are stamped 30 ms after their images; the world frame changes at every frame."""
        dense = orbit(6000)  # 6 frames a degree … 1 ms is one step of this path
        shown, taken = 1000 + 100 * np.arange(24), 1030 + 100 * np.arange(24)
        changes = [(Rotation.from_rotvec([0, 0.5 * k, 0]), np.array([0.3 * k, 0.1, 0])) for k in range(24)]
        cameras = moved((dense[0][taken], dense[1][taken]), changes)
        document = conditioned(cameras, moved((Rotation.identity(24), np.zeros((24, 3))), changes))
        for k, frame in enumerate(document.frames):
            frame.t, frame.pose_t = 0.1 * k, 0.1 * k + 0.03
        result, posed = compensate(tmp_path, document)
        error_m, error_deg = pose_differences(matrices(posed), pose_matrices(dense[0][shown], dense[1][shown]))
        assert error_m[1:].max() < 0.001  # without: 18 mm; the arc bulges by 0.7 mm between two poses 6° apart
        assert error_m[0] < 0.002  # before the first pose the path goes on straight
        assert error_deg.max() < 0.05  # without: 1.8°
        assert result.metrics["largest_pose_delay_s"] == pytest.approx(0.03)

    def test_quarter_turns_of_images_do_not_mix_into_interpolation(self, tmp_path):
        cameras = orbit(60)
        document = conditioned(cameras, None)
        for k, frame in enumerate(document.frames):
            frame.pose_t = frame.t + 0.05
            if k >= 30:  # the same path, but images stored a quarter turn round
                turned = cameras[0][k] * Rotation.from_euler("z", -90, degrees=True)
                frame.pose_world = Pose(p=cameras[1][k].tolist(), q=turned.as_quat().tolist())
                frame.source.rotation_quarters = 1
        _, posed = compensate(tmp_path, document)
        found = Rotation.from_matrix(matrices(posed)[:, :3, :3])
        back = Rotation.concatenate([found[:30], found[30:] * Rotation.from_euler("z", 90, degrees=True)])
        steps_deg = np.degrees((back[1:].inv() * back[:-1]).magnitude())
        assert steps_deg.max() < 6.5

    def test_repeated_times_do_no_harm(self, tmp_path):
        document = conditioned(orbit(60), None)
        for k, frame in enumerate(document.frames):
            frame.t, frame.pose_t = float(k // 3), k // 3 + 0.02  # three poses and images of each time
        _, posed = compensate(tmp_path, document)
        assert np.isfinite(matrices(posed)).all()
        path = pose_matrices(*orbit(60))[::3]  # of poses of one time the first counts
        assert np.linalg.norm(matrices(posed)[::3, :3, 3] - path[:, :3, 3], axis=1).max() < 0.02 * 0.2
        same = conditioned(orbit(60), None)
        for frame in same.frames:
            frame.t = 1.0  # a recorder without a clock
        np.testing.assert_allclose(matrices(compensate(tmp_path, same)[1]), pose_matrices(*orbit(60)), atol=1e-12)

    def test_poses_far_from_their_images_in_time_are_told(self, tmp_path):
        document = conditioned(orbit(24), None)
        document.frames[7].pose_t = 7.4
        assert any("up to 0.40 s apart" in warning for warning in compensate(tmp_path, document)[0].warnings)


class TestTurntable:
    def test_a_camera_that_stands_still_before_a_turning_anchor_is_recognised(self, tmp_path):
        cameras = orbit(36)
        still = Rotation.from_euler("x", -20, degrees=True), np.array([0.0, 0.5, 1.0])
        # The anchor moves so that the camera relative to it is on the orbit: A = C · (camera to anchor)⁻¹.
        to_camera = cameras[0].inv(), -cameras[0].inv().apply(cameras[1])
        anchors = still[0] * to_camera[0], still[0].apply(to_camera[1]) + still[1]
        result, posed = compensate(tmp_path, conditioned(stack([still] * 36), anchors))
        np.testing.assert_allclose(matrices(posed), pose_matrices(*cameras), atol=1e-9)
        assert posed.turntable
        assert result.warnings[0].startswith("the camera stood still while the object turned (a turntable)")
        assert result.metrics["corrections"] == []

    def test_walking_round_is_none(self, tmp_path):
        document = conditioned(orbit(36), stack([(Rotation.identity(), np.zeros(3))] * 36))
        assert not compensate(tmp_path, document)[1].turntable

    def test_a_camera_that_did_not_move_round_the_object_is_refused(self, tmp_path):
        still = Rotation.from_euler("x", -20, degrees=True), np.array([0.0, 0.3, 0.6])
        with pytest.raises(CaptureError, match=r"did not move round the object: .* within 0\.0 cm.* turntable"):
            compensate(tmp_path, conditioned(stack([still] * 12), None))
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

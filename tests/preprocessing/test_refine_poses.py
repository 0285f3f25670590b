"""Pose refinement: the adapter to bundle adjustment on exact observations, the checks of frames, and real pictures."""

import json
import math
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pycolmap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from preprocessing.bundle_adjustment import Adjustment, Tolerance, match_frames
from preprocessing.frame_checks import Refinement, Verdict, camera_distance, check_frames, pose_differences
from preprocessing.images import linear_to_srgb, srgb_to_linear
from preprocessing.matching import MAX_PAIR_ANGLE_DEG, choose_pairs
from preprocessing.refine_poses import POSE_DECIMALS, run
from scan2twin.capture.models import Intrinsics, ObjectBox
from scan2twin.capture.reader import read_capture
from scan2twin.config import RefinePosesConfig
from scan2twin.frames import PosedFrame, PosedFrames
from scan2twin.progress import LogProgress
from scan2twin.stages import StageInputs, StageResult

SPOT = Path(__file__).parents[1] / "data/spot-capture"
TOLERANCE = Tolerance(angle_deg=6.0, reprojection_px=30.0)


def orbit(count: int, turn: float = 2 * math.pi) -> np.ndarray:
    """camera_to_reference (N × 4 × 4, OpenGL axes) of cameras on two heights round the origin, looking at it."""
    angle = np.linspace(0, turn, count, endpoint=False)
    position = 0.6 * np.stack([np.sin(angle), 0.3 + 0.3 * (np.arange(count) % 2), np.cos(angle)], axis=1)
    back = position / np.linalg.norm(position, axis=1, keepdims=True)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = np.stack([right, np.cross(back, right), back], axis=2)
    poses[:, :3, 3] = position
    return poses


def disturbed(poses: np.ndarray, metres: float, degrees: float, seed: int = 0) -> np.ndarray:
    """Add normal noise whose vectors have the given root-mean-square lengths."""
    rng = np.random.default_rng(seed)
    result = poses.copy()
    result[:, :3, 3] += rng.normal(size=(len(poses), 3)) * metres / math.sqrt(3)
    noise = Rotation.from_rotvec(rng.normal(size=(len(poses), 3)) * math.radians(degrees) / math.sqrt(3))
    result[:, :3, :3] = (noise * Rotation.from_matrix(poses[:, :3, :3])).as_matrix()
    return result


def posed_frames(poses: np.ndarray, size: tuple[int, int] = (640, 480), focal: float = 600.0) -> PosedFrames:
    width, height = size
    intrinsics = Intrinsics(fx=focal, fy=focal, cx=width / 2, cy=height / 2)
    frames = [
        PosedFrame(index=k, file=f"images/{k:06d}.jpg", width=width, height=height, intrinsics=intrinsics,
                   camera_to_reference=pose.tolist())
        for k, pose in enumerate(poses)
    ]  # fmt: skip
    box = ObjectBox(center=[0.0, 0.0, 0.0], size=[0.2, 0.2, 0.2])
    return PosedFrames(capture_id="test", metric=True, object=box, unit_to_reference=np.eye(4).tolist(), frames=frames)


def errors_after_rigid_alignment(found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position errors (metres) and rotation errors (degrees) after the rigid motion that fits positions best."""
    a, b = found[:, :3, 3] - found[:, :3, 3].mean(0), true[:, :3, 3] - true[:, :3, 3].mean(0)
    align = Rotation.align_vectors(b, a)[0]
    aligned = found.copy()
    aligned[:, :3, 3] = align.apply(a) + true[:, :3, 3].mean(0)
    aligned[:, :3, :3] = align.as_matrix() @ found[:, :3, :3]
    return pose_differences(true, aligned)


class TestAdjustment:
    """Exact observations of known points, projected here by plain algebra, written as a COLMAP database."""

    @pytest.fixture
    def world(self, tmp_path: Path) -> tuple[PosedFrames, np.ndarray, Path]:
        true = orbit(12)
        posed = posed_frames(true)
        points = np.random.default_rng(5).uniform(-0.15, 0.15, (150, 3))
        with pycolmap.Database.open(tmp_path / "features.db") as database:
            camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=640, height=480, params=[600.0, 320.0, 240.0])
            camera.camera_id = database.write_camera(camera)
            rig = pycolmap.Rig()
            rig.add_ref_sensor(camera.sensor_id)
            rig.rig_id = database.write_rig(rig)
            for frame in posed.frames:
                image = pycolmap.Image(frame.file, camera_id=camera.camera_id)
                image.image_id = database.write_image(image)
                stored = pycolmap.Frame()
                stored.rig_id = rig.rig_id
                stored.add_data_id(image.data_id)
                database.write_frame(stored)
                in_camera = np.linalg.inv(np.array(frame.camera_to_reference)) @ np.c_[points, np.ones(150)].T
                pixels = [320, 240] + 600 * np.stack([in_camera[0], -in_camera[1]], axis=1) / -in_camera[2][:, None]
                database.write_keypoints(image.image_id, pixels.astype(np.float32))
            same = np.repeat(np.arange(150, dtype=np.uint32)[:, None], 2, axis=1)
            geometry = pycolmap.TwoViewGeometry()
            geometry.config = pycolmap.TwoViewGeometryConfiguration.CALIBRATED
            geometry.inlier_matches = same
            for a in range(1, 13):
                for b in range(a + 1, 13):
                    database.write_matches(a, b, same)
                    database.write_two_view_geometry(a, b, geometry)
        return posed, true, tmp_path

    def adjustment(self, world: tuple[PosedFrames, np.ndarray, Path], given: np.ndarray) -> Adjustment:
        folder = world[2]
        return Adjustment(folder / "features.db", posed_frames(given).frames, folder, folder)

    def test_poses_go_in_and_come_out_the_same(self, world):
        np.testing.assert_allclose(self.adjustment(world, world[1]).poses(), world[1], atol=1e-12)

    def test_true_poses_leave_no_reprojection_error(self, world):
        adjustment = self.adjustment(world, world[1])
        adjustment.triangulate(TOLERANCE)
        errors = adjustment.reprojection_errors()
        assert [len(seen) for seen in errors] == [150] * 12
        assert max(seen.max() for seen in errors) < 1e-3  # keypoints are stored as float32

    def test_noise_goes_and_the_metric_frame_stays(self, world):
        given = disturbed(world[1], 0.005, 1.0)
        adjustment = self.adjustment(world, given)
        for _ in range(2):
            adjustment.triangulate(TOLERANCE)
            adjustment.adjust(given[:, :3, 3], 0.02, range(12), refine_focal_length=False)
        moved, turned_deg = errors_after_rigid_alignment(adjustment.poses(), world[1])
        scale = np.linalg.norm(np.diff(adjustment.poses()[:, :3, 3], axis=0), axis=1) / np.linalg.norm(
            np.diff(world[1][:, :3, 3], axis=0), axis=1
        )
        assert turned_deg.max() < 0.005
        assert np.ptp(scale) < 1e-3  # the shape is exact …
        assert scale.mean() == pytest.approx(1, abs=0.01)  # … its size the mean of what 12 noisy priors say
        assert moved.max() < 0.005
        assert max(np.median(seen) for seen in adjustment.reprojection_errors()) < 0.01

    def test_the_same_observations_give_the_same_poses(self, world):
        given = disturbed(world[1], 0.005, 1.0)
        runs = []
        for _ in range(2):
            adjustment = self.adjustment(world, given)
            adjustment.triangulate(TOLERANCE)
            adjustment.adjust(given[:, :3, 3], 0.02, range(12), refine_focal_length=True)
            runs.append(adjustment.poses().round(POSE_DECIMALS))
        np.testing.assert_array_equal(runs[0], runs[1])

    def test_only_the_given_rows_are_adjusted(self, world):
        given = disturbed(world[1], 0.005, 0.5)
        adjustment = self.adjustment(world, given)
        adjustment.triangulate(TOLERANCE)
        adjustment.adjust(given[:, :3, 3], 0.003, range(11), refine_focal_length=False)
        np.testing.assert_allclose(adjustment.poses()[11], given[11], atol=1e-12)
        assert not np.allclose(adjustment.poses()[10], given[10], atol=1e-6)

    def test_a_wrong_focal_length_is_found(self, world):
        _, true, folder = world
        with pycolmap.Database.open(folder / "features.db") as database:
            camera = database.read_camera(1)
            camera.params = [606.0, 320.0, 240.0]
            database.update_camera(camera)
        adjustment = self.adjustment(world, true)
        for _ in range(3):
            adjustment.triangulate(TOLERANCE)
            adjustment.adjust(true[:, :3, 3], 0.003, range(12), refine_focal_length=True)
        assert adjustment.focal_length(0) == pytest.approx(600, abs=0.5)

    def test_a_lost_frame_is_registered_anew(self, world):
        given = world[1].copy()
        given[4] = given[9]  # looks from the other side
        adjustment = self.adjustment(world, given)
        adjustment.triangulate(Tolerance(angle_deg=2.0, reprojection_px=4.0))
        assert len(adjustment.reprojection_errors()[4]) < 20
        assert adjustment.register(4, 20)
        moved, turned_deg = pose_differences(world[1], adjustment.poses())
        assert moved[4] < 1e-3
        assert turned_deg[4] < 0.1

    def test_a_frame_without_enough_points_is_not_registered(self, world):
        adjustment = self.adjustment(world, world[1])
        adjustment.triangulate(TOLERANCE)
        assert not adjustment.register(4, 151)


class TestPairs:
    @settings(deadline=None, max_examples=40)
    @given(st.integers(2, 40), st.integers(2, 10), st.integers(0, 100))
    def test_each_view_is_matched_with_near_ones_once(self, count, neighbours, seed):
        offsets = np.random.default_rng(seed).normal(size=(count, 3))
        pairs = choose_pairs(offsets, neighbours)
        assert pairs == sorted(set(pairs))
        unit = offsets / np.linalg.norm(offsets, axis=1, keepdims=True)
        angles = np.degrees(np.arccos(np.clip(unit @ unit.T, -1, 1)))
        for row in range(count):
            mine = [pair for pair in pairs if row in pair]
            near = (angles[row] <= MAX_PAIR_ANGLE_DEG).sum() - 1
            assert len(mine) >= min(neighbours, near)
        assert all(a < b and angles[a, b] <= MAX_PAIR_ANGLE_DEG for a, b in pairs)

    def test_neighbours_in_a_dense_capture_are_spread(self):
        offsets = orbit(360)[::2, :3, 3]  # one height, 2° apart
        reach = [abs(a - b) for a, b in choose_pairs(offsets, 8)]
        assert max(min(step, 180 - step) for step in reach) >= 10


def refinement(true: np.ndarray, **values: object) -> Refinement:
    count = len(true)
    standard = {
        "camera_to_reference": true, "focal_factor": 1.0, "observations": np.full(count, 300),
        "error_before_px": 3.0, "error_px": np.full(count, 0.4), "prior_sigma": 0.003, "registered": [],
    }  # fmt: skip
    return Refinement(**(standard | values))


class TestFrameFaults:
    def faults(self, result: Refinement) -> dict[int, str]:
        posed = posed_frames(disturbed(orbit(12), 0.003, 0.2))
        verdict = check_frames(posed, result, 20)
        assert verdict.unadjusted == []
        return verdict.faults

    def test_good_frames_have_none(self):
        assert self.faults(refinement(orbit(12))) == {}

    def test_few_points(self):
        seen = np.full(12, 300)
        seen[3] = 19
        assert self.faults(refinement(orbit(12), observations=seen)) == {
            3: "only 19 points seen in other frames too (at least 20): blurred, or too far off"
        }

    def test_few_points_where_the_given_poses_are_precise(self):
        seen = np.full(12, 300)
        seen[3] = 0
        posed = posed_frames(disturbed(orbit(12), 0.0005, 0.05))
        found = refinement(orbit(12), observations=seen)
        assert check_frames(posed, found, 20) == Verdict({}, [3])

    def test_large_reprojection_error(self):
        error = np.full(12, 0.4)
        error[5] = 3.21
        assert self.faults(refinement(orbit(12), error_px=error)) == {
            5: "its points are 3.2 px off after adjustment; did something move?"
        }

    @pytest.mark.parametrize("change", [("position", 0.05), ("rotation", 4.9)])
    def test_far_from_the_prior(self, change):
        poses = orbit(12)
        if change[0] == "position":
            poses[7, :3, 3] += [change[1], 0, 0]
        else:
            poses[7, :3, :3] = poses[7, :3, :3] @ Rotation.from_euler("x", change[1], degrees=True).as_matrix()
        faults = self.faults(refinement(poses))
        assert list(faults) == [7]
        assert "its matches mislead" in faults[7]


def stage(folder: Path, posed: PosedFrames, images: Path, **config: object) -> tuple[StageResult, PosedFrames]:
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    posed.write(folder / "in/poses.json")
    inputs = StageInputs({"condition": images, "compensate_poses": folder / "in"})
    result = run(inputs, folder / "out", RefinePosesConfig(**config), LogProgress())
    return result, PosedFrames.read(folder / "out/poses.json")


def test_switched_off_it_hands_the_poses_on(tmp_path):
    posed = posed_frames(orbit(12))
    result, out = stage(tmp_path, posed, tmp_path, enabled=False)
    assert out == posed
    assert result.metrics == {"refined": False}


def test_pictures_without_texture_keep_the_given_poses_and_say_so(tmp_path):
    posed = posed_frames(orbit(9), size=(160, 120))
    (tmp_path / "images").mkdir()
    for frame in posed.frames:
        Image.new("RGB", (160, 120), (120, 130, 140)).save(tmp_path / frame.file)
    result, out = stage(tmp_path, posed, tmp_path)
    assert out == posed
    assert result.metrics["refined"] is False
    assert result.warnings[0].startswith("poses were not refined: only 0 of 9 frames could be adjusted")
    assert "newspaper" in result.warnings[0]


def test_what_stays_in_place_in_the_image_is_not_matched(tmp_path):
    """A turntable: the object turns before a textured wall that does not."""
    rng = np.random.default_rng(2)
    wall = cv2.resize(rng.integers(0, 255, (80, 80, 3), dtype=np.uint8), (400, 400), interpolation=cv2.INTER_CUBIC)
    card = cv2.resize(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8), (200, 200), interpolation=cv2.INTER_CUBIC)
    (tmp_path / "images").mkdir()
    frames = posed_frames(orbit(2), size=(400, 400)).frames
    for frame, shift in zip(frames, (0, 40), strict=True):
        picture = wall.copy()
        picture[100:300, 80 + shift : 280 + shift] = card
        Image.fromarray(picture).save(tmp_path / frame.file, quality=95)
    matched, seen = [], []
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        database = match_frames(tmp_path, frames, [(0, 1)], tmp_path / name, max_features=1000, long_side=400)
        with pycolmap.Database.open(database) as opened:
            seen.append([opened.read_keypoints(i)[:, :2] for i in (1, 2)])
            matched.append(opened.read_two_view_geometry(1, 2).inlier_matches)
            assert len(opened.read_matches(1, 2)) > len(matched[0]) + 50  # the wall did match
    np.testing.assert_array_equal(matched[0], matched[1])  # nothing depends on chance
    matches, (first, second) = matched[0], seen[0]
    moved = np.linalg.norm(second[matches[:, 1]] - first[matches[:, 0]], axis=1)
    assert len(matches) > 50
    assert moved.min() > 4


def test_frames_of_other_size_and_focal_length_keep_their_own_camera(tmp_path):
    rng = np.random.default_rng(4)
    scene = cv2.resize(rng.integers(0, 255, (60, 60, 3), dtype=np.uint8), (400, 400), interpolation=cv2.INTER_CUBIC)
    (tmp_path / "images").mkdir()
    wide = posed_frames(orbit(2), size=(400, 300), focal=500.0).frames[0]
    tall = posed_frames(orbit(2), size=(300, 400), focal=550.0).frames[1]
    Image.fromarray(scene[:300]).save(tmp_path / wide.file)
    Image.fromarray(scene[:, 60:360]).save(tmp_path / tall.file)
    match_frames(tmp_path, [wide, tall], [(0, 1)], tmp_path, max_features=1000, long_side=400)
    adjustment = Adjustment(tmp_path / "features.db", [wide, tall], tmp_path, tmp_path)
    assert [adjustment.focal_length(0), adjustment.focal_length(1)] == [500.0, 550.0]
    with pycolmap.Database.open(tmp_path / "features.db") as opened:
        assert len(opened.read_two_view_geometry(1, 2).inlier_matches) > 50


class TestPaintedBox:
    """A painted box of 20 × 25 × 20 cm, drawn here face by face, that turns before a wall or a camera goes round."""

    SIZE = (0.2, 0.25, 0.2)
    COUNT = 16
    OPTIONS: ClassVar = {"max_features": 700, "neighbours": 5}

    @staticmethod
    def noise(seed: int, cells: int, pixels: int) -> np.ndarray:
        coarse = np.random.default_rng(seed).integers(0, 255, (cells, cells, 3), dtype=np.uint8)
        return cv2.resize(coarse, (pixels, pixels), interpolation=cv2.INTER_CUBIC)

    def draw(self, posed: PosedFrames, folder: Path, wall: np.ndarray | None, gains: np.ndarray | None = None) -> None:
        """Write the pictures of `posed`: the nearer faces over the farther ones, over `wall` or grey.

        `gains` (N, 3) multiply the pictures' linear light.
        """
        (folder / "images").mkdir(exist_ok=True)
        x, y, z = np.array(self.SIZE) / 2
        faces = [  # corners, seen from outside: top left, top right, bottom right, bottom left
            [[-x, y, z], [x, y, z], [x, -y, z], [-x, -y, z]], [[x, y, z], [x, y, -z], [x, -y, -z], [x, -y, z]],
            [[x, y, -z], [-x, y, -z], [-x, -y, -z], [x, -y, -z]], [[-x, y, -z], [-x, y, z], [-x, -y, z], [-x, -y, -z]],
            [[-x, y, -z], [x, y, -z], [x, y, z], [-x, y, z]],
        ]  # fmt: skip
        paint = [self.noise(k, 40, 256) for k in range(len(faces))]
        for k, frame in enumerate(posed.frames):
            size = (frame.width, frame.height)
            picture = np.full((*size[::-1], 3), 128, np.uint8) if wall is None else wall.copy()
            camera = np.array(frame.camera_to_reference)
            for corners, texture in zip(np.array(faces), paint, strict=True):
                normal = np.cross(corners[1] - corners[0], corners[0] - corners[3])
                if normal @ (camera[:3, 3] - corners.mean(0)) <= 0:
                    continue  # convex: what faces the camera is not hidden
                in_camera = (corners - camera[:3, 3]) @ camera[:3, :3]
                pixels = frame.intrinsics.fx * in_camera[:, :2] / -in_camera[:, 2:] * [1, -1] + np.array(size) / 2
                source = np.array([[0, 0], [256, 0], [256, 256], [0, 256]], np.float32)
                # OpenCV counts from the first pixel's centre.
                H = cv2.getPerspectiveTransform(source - np.float32(0.5), (pixels - 0.5).astype(np.float32))
                face = cv2.warpPerspective(texture, H, size, flags=cv2.INTER_AREA)
                inside = cv2.warpPerspective(np.full((256, 256), 255, np.uint8), H, size) > 127
                picture[inside] = face[inside]
            if gains is not None:
                light = srgb_to_linear(picture / 255.0) * gains[k]
                picture = np.rint(255 * linear_to_srgb(light.clip(0, 1))).astype(np.uint8)
            Image.fromarray(picture).save(folder / frame.file, quality=95)

    @pytest.fixture
    def true(self) -> PosedFrames:
        box = ObjectBox(center=[0.0, 0.0, 0.0], size=list(self.SIZE))
        return posed_frames(orbit(self.COUNT), size=(320, 320), focal=340.0).model_copy(update={"object": box})

    def given(self, true: PosedFrames, **changes: object) -> PosedFrames:
        noisy = disturbed(orbit(self.COUNT), 0.004, 0.4)
        frames = [
            frame.model_copy(update={"camera_to_reference": pose.tolist()})
            for frame, pose in zip(true.frames, noisy, strict=True)
        ]
        return true.model_copy(update={"frames": frames} | changes)

    def assert_near_the_truth(self, out: PosedFrames, count: int) -> None:
        found = np.array([frame.camera_to_reference for frame in out.frames])
        moved, turned_deg = errors_after_rigid_alignment(found, orbit(self.COUNT)[[f.index for f in out.frames]])
        assert len(found) == count
        assert np.median(moved) < 0.002  # the scale is the mean of what the noisy priors say
        assert moved.max() < 0.004
        assert np.median(turned_deg) < 0.2  # 0.4 were given, in pictures of 320 pixels
        assert turned_deg.max() < 0.4

    def test_a_turntable_is_recognised_and_refined_on_the_object_only(self, true, tmp_path):
        self.draw(true, tmp_path, self.noise(9, 90, 320))
        result, out = stage(tmp_path, self.given(true), tmp_path, **self.OPTIONS)
        assert result.metrics["object_only"] is True
        assert result.warnings[0].startswith("the background does not move with the object (a turntable?)")
        self.assert_near_the_truth(out, self.COUNT)

    def test_bad_poses_are_mended_or_dropped_points_lie_on_the_box_and_exposures_are_found(self, true, tmp_path):
        log_gains = np.random.default_rng(6).uniform(-0.25, 0.25, (self.COUNT, 3))  # each picture's exposure and colour
        self.draw(true, tmp_path, None, np.exp(log_gains - 0.4))  # darker, so that nothing is cut off
        Image.new("RGB", (320, 320), (128, 128, 128)).save(tmp_path / true.frames[11].file)
        given = self.given(true)
        for row in (5, 11):
            pose = disturbed(np.array([given.frames[row].camera_to_reference]), 0.03, 3.0, seed=row)[0]
            given.frames[row] = given.frames[row].model_copy(
                update={"camera_to_reference": pose.tolist(), "guessed": True}
            )
        glitch = np.array(given.frames[8].camera_to_reference)
        glitch[:3, 3] += glitch[:3, 0] * 0.06  # the tracker was 6 cm off to the side
        given.frames[8] = given.frames[8].model_copy(update={"camera_to_reference": glitch.tolist()})
        result, out = stage(tmp_path, given, tmp_path, **self.OPTIONS)
        assert result.metrics["object_only"] is False
        assert result.metrics["dropped"] == [11]
        assert "frame 11 is left out: it had no pose of its own, and its picture does not confirm" in result.warnings[0]
        assert result.metrics["registered_anew"] >= 1
        self.assert_near_the_truth(out, self.COUNT - 1)
        kept = log_gains[[frame.index for frame in out.frames]]
        found = np.array([frame.gain for frame in out.frames])
        assert np.sqrt(np.square(np.log(found) - kept + kept.mean(axis=0)).mean()) < 0.025  # pictures of 320 pixels
        points = np.load(tmp_path / "out/points.npz")
        outside = np.abs(points["xyz"]) - np.array(self.SIZE) / 2
        assert len(outside) == result.metrics["points"] > 300
        assert np.median(np.abs(outside.max(axis=1))) < 0.001  # metres from the surface
        assert points["frames"].min() == 3
        assert np.array_equal(np.bincount(points["seen"]), points["frames"])
        centres = np.array([true.frames[i].camera_to_reference for i in points["seen_by"]])[:, :3, 3]
        seen = points["xyz"][points["seen"]]
        face = outside.argmax(axis=1)[points["seen"], None]
        beyond = np.take_along_axis((centres - seen) * np.sign(seen), face, axis=1)
        assert (beyond > 0).mean() > 0.99  # no frame sees a point on the far side of the box
        assert points["rgb"].std() > 20
        assert points["error_px"].max() < 8


def test_guessed_poses_go_where_refinement_is_switched_off(tmp_path):
    posed = posed_frames(orbit(12))
    posed.frames[4].guessed = True
    result, out = stage(tmp_path, posed, tmp_path, enabled=False)
    assert [frame.index for frame in out.frames] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert result.warnings[0].startswith("frame 4 is left out: it had no pose of its own")


class TestPhoneCaptureWithKnownTruth:
    """Half of the rendered phone capture (300 × 400 pixels), with noise added to its true poses."""

    ROWS = (*range(28, 40), *range(41, 48))

    @pytest.fixture
    def spot(self) -> tuple[PosedFrames, np.ndarray]:
        truth = json.loads((SPOT / "truth/poses.json").read_text())["frames"]
        true = np.array([truth[row]["camera_to_anchor"] for row in self.ROWS])
        capture = read_capture(SPOT / "capture")
        assert capture.document.object is not None
        frames = [
            PosedFrame(index=frame.i, file=frame.file, width=frame.width, height=frame.height,
                       intrinsics=frame.intrinsics, camera_to_reference=pose.tolist())
            for frame, pose in zip((capture.frames[row] for row in self.ROWS), disturbed(true, 0.002, 0.3), strict=True)
        ]  # fmt: skip
        return (
            PosedFrames(capture_id="spot", metric=True, object=capture.document.object, frames=frames,
                        unit_to_reference=np.eye(4).tolist()),
            true,
        )  # fmt: skip

    def test_refined_poses_are_near_the_truth(self, spot, tmp_path):
        posed, true = spot
        result, out = stage(tmp_path, posed, SPOT / "capture")
        kept = [self.ROWS.index(frame.index) for frame in out.frames]
        found = np.array([frame.camera_to_reference for frame in out.frames])
        moved, turned_deg = errors_after_rigid_alignment(found, true[kept])
        distance = camera_distance(posed)
        assert len(kept) >= 16
        assert np.median(moved) / distance < 0.002
        assert np.median(turned_deg) < 0.06
        assert moved.max() / distance < 0.005
        assert turned_deg.max() < 0.3
        assert abs(result.metrics["scale_change"]) < 0.005
        assert result.metrics["reprojection_px"] < 0.5 * result.metrics["reprojection_before_px"]
        assert [c["frame"] for c in result.metrics["corrections"]] == [frame.index for frame in out.frames]
        assert Image.open(tmp_path / "out/camera_path.png").size == (1100, 520)

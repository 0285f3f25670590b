"""The sample capture that ships, and the script that makes it."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import pytest
from scipy.spatial.transform import Rotation

from scan2twin.capture.reader import check_bundle, read_capture
from scan2twin.samples import SKULL, make_skull

MAX_BYTES = 8_000_000  # the sample is part of every installation


def test_the_sample_is_a_valid_small_bundle() -> None:
    assert check_bundle(SKULL) == []
    capture = read_capture(SKULL)
    assert len(capture.frames) >= 44
    assert sum(file.stat().st_size for file in SKULL.rglob("*") if file.is_file()) <= MAX_BYTES


def test_the_sample_names_its_author_and_licence() -> None:
    text = (SKULL.parent / "ATTRIBUTION.md").read_text()
    for part in ("alansartlog", "CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/", "Changes"):
        assert part in text


def test_the_sample_is_seen_from_all_round_and_looked_at() -> None:
    capture = read_capture(SKULL)
    positions = np.array([frame.pose_world.p for frame in capture.frames])
    looks = Rotation.from_quat([frame.pose_world.q for frame in capture.frames]).apply([0, 0, -1])
    directions = -positions / np.linalg.norm(positions, axis=1, keepdims=True)  # the box is centred at the origin
    assert np.degrees(np.arccos((looks * directions).sum(axis=1))).max() < 25
    azimuth = np.sort(np.degrees(np.arctan2(positions[:, 0], positions[:, 2])))
    assert np.diff(azimuth, append=azimuth[0] + 360).max() < 35


def synthetic_model(tmp_path: Path) -> tuple[Any, Path]:
    """A camera orbit of a point cloud with lens distortion, and a blank photo for each camera."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, 1, 8
    options.camera_model_id = pycolmap.CameraModelId.SIMPLE_RADIAL
    options.camera_width, options.camera_height = 1600, 1067
    options.camera_params = [1900, 810, 520, 0.05]
    pycolmap.set_random_seed(0)
    model = pycolmap.synthesize_dataset(options)
    photos = tmp_path / "photos"
    photos.mkdir()
    for image in model.images.values():
        cv2.imwrite(str(photos / image.name), np.zeros((1067, 1600, 3), np.uint8))
    return model, photos


def test_the_bundle_projects_points_where_colmap_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, photos = synthetic_model(tmp_path)
    names = sorted(image.name for image in model.images.values())
    monkeypatch.setattr(make_skull, "FRONT_PHOTO", names[3])
    box = make_skull.normalise(model)
    out = tmp_path / "bundle"
    make_skull.write_bundle(model, box, photos, out)

    assert check_bundle(out) == []
    capture = read_capture(out)
    points = np.array([point.xyz for point in model.points3D.values()])
    k = np.array(json.loads((out / "capture.json").read_text())["camera"]["distortion"]["k"])
    for frame, name in zip(capture.frames, names, strict=True):
        image = model.find_image_with_name(name)
        expected = np.array([image.project_point(point) for point in points]) * [800 / 1600, 534 / 1067]
        # OpenCV: camera axes turned from OpenGL's, and pixel centres at whole numbers, half a pixel less.
        world_to_camera = make_skull.OPENCV_TO_OPENGL @ Rotation.from_quat(frame.pose_world.q).as_matrix().T
        position = np.array(frame.pose_world.p)
        intrinsics = frame.intrinsics
        matrix = np.array([[intrinsics.fx, 0, intrinsics.cx - 0.5], [0, intrinsics.fy, intrinsics.cy - 0.5], [0, 0, 1]])
        rotation, _ = cv2.Rodrigues(world_to_camera)
        found, _ = cv2.projectPoints(points, rotation, -world_to_camera @ position, matrix, k)
        np.testing.assert_allclose(found[:, 0] + 0.5, expected, atol=1e-3)


def test_the_frame_is_upright_centred_and_of_unit_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = synthetic_model(tmp_path)
    front = sorted(image.name for image in model.images.values())[3]
    monkeypatch.setattr(make_skull, "FRONT_PHOTO", front)
    box = make_skull.normalise(model)
    assert max(box.size) == pytest.approx(1, abs=1e-4)
    low, high = make_skull.object_bounds(model)
    np.testing.assert_allclose(high + low, 0, atol=1e-6)
    pose = make_skull.camera_to_world_opengl(model.find_image_with_name(front))
    assert pose[0, 2] == pytest.approx(0, abs=1e-9)  # the front camera's view axis lies in the plane x = 0 …
    assert pose[2, 2] > 0  # … and the camera is on the +Z side


def test_up_is_found_from_level_cameras_at_any_height() -> None:
    azimuth, height = np.meshgrid(np.radians(np.arange(0, 360, 30)), np.radians([-20, 10, 60]))
    turn = Rotation.from_euler("YX", np.stack([azimuth.ravel(), -height.ravel()], axis=1))
    tilt = Rotation.from_rotvec([0.7, -0.2, 1.1])
    up = make_skull.up_direction((tilt * turn).apply([1, 0, 0]), (tilt * turn).apply([0, 1, 0]))
    np.testing.assert_allclose(up, tilt.apply([0, 1, 0]), atol=1e-9)

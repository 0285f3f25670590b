"""The recorder in a real browser on an emulated phone, against the real API and a real store, up to `validate`."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from ingest_server import Server
from scipy.spatial.transform import Rotation

from plugins.api import RECORDER as BUILT
from preprocessing.validate import run as validate
from scan2twin.capture.models import FrameRecord, Pose
from scan2twin.capture.reader import read_capture
from scan2twin.config import PipelineConfig
from scan2twin.progress import LogProgress
from scan2twin.stages import CAPTURE, StageInputs
from scan2twin.store.captures import download_capture, find_capture

RECORDER = Path(__file__).parents[2] / "recorder-app"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or not (RECORDER / "node_modules").exists() or not BUILT.exists(),
    reason="needs Chromium and the built recorder (make recorder)",
)
# The markers of recorder-app/e2e/scene.ts that are seen from all sides: place in the room (m), and pure colour (BGR).
MARKERS = [([0.0, 0.36, 0.0], (0, 0, 255)), ([0.2, 0.08, 0.16], (0, 255, 0)), ([-0.2, 0.12, 0.12], (255, 0, 0)),
           ([0.05, 0.2, -0.22], (255, 0, 255))]  # fmt: skip
COLOR_TOLERANCE = 60  # JPEG bleeds colours
MEDIAN_ERROR_PX = 0.25  # of the issue of a world that jumps: poses without the anchor are off by hundreds

Float64 = npt.NDArray[np.float64]


def camera_to_anchor(frame: FrameRecord) -> tuple[Float64, Float64]:
    assert frame.anchor is not None
    anchor, camera = frame.anchor, frame.pose_world
    R = Rotation.from_quat(anchor.q).inv()
    return (R * Rotation.from_quat(camera.q)).as_matrix(), R.apply(np.subtract(camera.p, anchor.p))


def project(frame: FrameRecord, point: Float64) -> Float64:
    R, t = camera_to_anchor(frame)
    x, y, z = R.T @ (point - t)
    k = frame.intrinsics
    return np.array([k.cx - k.fx * x / z, k.cy + k.fy * y / z])


def blob_centre(image: npt.NDArray[np.uint8], color: tuple[int, int, int]) -> Float64 | None:
    """Where a marker is seen, pixels; None if it is hidden, in part or whole."""
    near = (np.abs(image.astype(int) - color).max(axis=2) < COLOR_TOLERANCE).astype(np.uint8)
    count, _, stats, centroids = cv2.connectedComponentsWithStats(near)
    if count < 2:
        return None
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    width, height, area = stats[largest, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT, cv2.CC_STAT_AREA]]
    is_round = abs(int(width) - int(height)) <= 1 and area > 0.7 * width * height
    return centroids[largest] + 0.5 if is_round and width >= 8 else None


def test_a_phone_records_and_uploads_and_its_poses_are_right(server: Server, tmp_path: Path) -> None:
    status, pairing = server.call("POST", "/pairings", {}, user="ann")
    assert status == 201
    done = subprocess.run(
        ["node_modules/.bin/tsx", "e2e/flow.ts", pairing["link"], tmp_path / "shots"],
        cwd=RECORDER, env={**os.environ, "CHROMIUM": str(CHROMIUM)}, capture_output=True, text=True, timeout=500,
        check=False,
    )  # fmt: skip
    if kept := os.environ.get("SCAN2TWIN_TEST_SCREENSHOTS"):
        shutil.copytree(tmp_path / "shots", kept, dirs_exist_ok=True)
    assert done.returncode == 0, done.stderr[-3000:]
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert "Chrome on an Android phone" in seen["withoutAr"]
    assert "pair" not in seen["addressAfterPairing"]
    assert seen["size"] != "25 × 25 × 25 cm"
    assert seen["warnings"]["darkPhotos"] == "0"
    assert seen["offlineStart"] == "Gear box cover"
    assert seen["imagesLeft"] == 0
    assert seen["photos"] >= 25
    assert [error for error in seen["errors"] if "ERR_INTERNET_DISCONNECTED" not in error] == []

    state = server.call("GET", f"/pairings/{pairing['id']}", user="ann")[1]
    assert state["state"] == "complete"
    assert server.started == [(state["capture_id"], "ann")]
    stored = find_capture(server.store, state["capture_id"])
    download_capture(server.store, stored, tmp_path / "capture")
    (tmp_path / "validated").mkdir()
    result = validate(
        StageInputs({CAPTURE: tmp_path / "capture"}), tmp_path / "validated", PipelineConfig().validate_, LogProgress()
    )
    capture = read_capture(tmp_path / "capture")
    usable = json.loads((tmp_path / "validated/validation.json").read_text())["usable"]
    assert len(usable) == len(capture.frames) == seen["photos"]
    assert not any("frame" in warning for warning in result.warnings)
    assert (capture.document.name, capture.document.version) == ("Gear box cover", "1.1")
    first, last = (getattr(capture.document.anchors[0], name) for name in ("pose_first", "pose_last"))
    assert isinstance(first, Pose)
    assert np.linalg.norm(np.subtract(first.p, last.p)) > 0.1  # the world was corrected in between

    errors = []
    for frame in capture.frames:
        image = cv2.imread(str(capture.root / frame.file))
        assert image is not None
        for place, color in MARKERS:
            if (found := blob_centre(image, color)) is not None:
                errors.append(np.linalg.norm(project(frame, np.array(place)) - found))
    assert len(errors) > len(capture.frames)
    print(f"{len(errors)} markers, median {np.median(errors):.3f} px, {seen['fps']:.1f} frames/s")
    assert np.median(errors) < MEDIAN_ERROR_PX

"""A part turned over: the recorder in a real browser on an emulated phone, and what the pipeline reads of it."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser_scripts import needs_browser, script
from ingest_server import Server
from scipy.spatial.transform import Rotation

from preprocessing.validate import run as validate
from scan2twin.capture.models import FrameRecord
from scan2twin.capture.reader import check_bundle, read_capture, unpack
from scan2twin.config import PipelineConfig
from scan2twin.progress import LogProgress
from scan2twin.stages import CAPTURE, StageInputs

pytestmark = [needs_browser, pytest.mark.timeout(900)]


def place_of_camera(frame: FrameRecord) -> list[float]:
    """Return where the camera was relative to the object's anchor of that frame, metres."""
    assert frame.anchor is not None
    assert frame.pose_world is not None
    to_anchor = Rotation.from_quat(frame.anchor.q).inv()
    return list(to_anchor.apply(np.subtract(frame.pose_world.p, frame.anchor.p)))


def test_both_sides_of_a_part_are_recorded(server: Server, tmp_path: Path) -> None:
    seen = script("underside", f"{server.url}/recorder/", tmp_path)
    if kept := os.environ.get("SCAN2TWIN_TEST_SCREENSHOTS"):
        shutil.copytree(tmp_path, kept, dirs_exist_ok=True)
    assert seen["errors"] == []
    assert seen["afterBack"].startswith(f"{seen['first']} of 72 views")
    assert seen["secondSide"].startswith("Second side: 4 of 72 views")
    assert "4 photos of the second side" in seen["quality"]
    assert "Fewer than 30 photos" in seen["quality"]
    assert "refuses" not in seen["quality"]

    unpack(tmp_path / "capture.zip", tmp_path / "capture")
    assert check_bundle(tmp_path / "capture") == []
    capture = read_capture(tmp_path / "capture")
    document = capture.document
    assert document.version == "1.1"
    assert document.reference_anchor == "object"
    objects = [anchor for anchor in document.anchors if anchor.role == "object"]
    assert [anchor.id for anchor in objects] == ["object", "object-2"]
    for anchor in objects:  # the world was corrected after both were placed
        assert np.linalg.norm(np.subtract(anchor.pose_first.p, anchor.pose_last.p)) > 0.1
    shown = [frame.anchor.id for frame in capture.frames if frame.anchor is not None]
    assert shown == ["object"] * seen["first"] + ["object-2"] * 4
    places = [np.subtract(eye, seen["place"] if name == "object-2" else 0) for eye, name in
              zip(seen["eyes"], shown, strict=True)]  # fmt: skip
    np.testing.assert_allclose([place_of_camera(frame) for frame in capture.frames], places, atol=1e-3)

    out = tmp_path / "out"
    out.mkdir()
    validate(StageInputs({CAPTURE: capture.root}), out, PipelineConfig().validate_, LogProgress())
    usable = json.loads((out / "validation.json").read_text(encoding="utf-8"))["usable"]
    assert usable[: seen["first"]] == list(range(seen["first"]))

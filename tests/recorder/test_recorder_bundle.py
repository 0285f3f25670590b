"""What the recorder's code writes in node, read by the pipeline: the bundle, its poses, its idea of quality."""

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from preprocessing.quality import assess, directions
from preprocessing.validate import run as validate
from scan2twin.capture.reader import Capture, check_bundle, read_capture, unpack
from scan2twin.config import PipelineConfig
from scan2twin.progress import LogProgress
from scan2twin.stages import CAPTURE, StageInputs

RECORDER = Path(__file__).parents[2] / "recorder-app"
TSX = RECORDER / "node_modules/.bin/tsx"
pytestmark = pytest.mark.skipif(not TSX.exists(), reason="the recorder's packages are not installed (make recorder)")

Float64 = npt.NDArray[np.float64]
WIDTH, HEIGHT = 48, 64


def look_at(eye: Float64, target: Float64) -> Float64:
    """Camera to world (4, 4), OpenGL axes."""
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    T = np.eye(4)
    T[:3] = np.stack([right, np.cross(back, right), back, eye], axis=1)
    return T


def projection_matrix() -> Float64:
    """An OpenGL projection (4, 4) with its principal point off the centre."""
    P = np.zeros((4, 4))
    P[0, 0], P[1, 1], P[0, 2], P[1, 2], P[2, 2], P[2, 3], P[3, 2] = 2.4, 1.8, 0.07, -0.04, -1.0, -0.2, -1.0
    return P


def orbit(folder: Path, rounds: tuple[tuple[float, int], ...], arc: float = 360.0) -> dict[str, Any]:
    """What WebXR reports of rounds (elevation in degrees, photos); the world frame jumps in the middle."""
    rng = np.random.default_rng(1)
    anchor = np.eye(4)
    anchor[:3, :3] = Rotation.from_euler("y", 40, degrees=True).as_matrix()
    anchor[:3, 3] = [0.3, -0.8, -1.0]
    jump = np.eye(4)
    jump[:3, :3] = Rotation.from_euler("y", 7, degrees=True).as_matrix()
    jump[:3, 3] = [0.2, 0.05, -0.1]
    box = {"center": [0.0, 0.1, 0.0], "size": [0.2, 0.2, 0.2]}
    frames, truth = [], []
    places = [(e, arc * i / count) for e, count in rounds for i in range(count)]
    for number, (elevation, azimuth) in enumerate(places):
        e, a = math.radians(elevation), math.radians(azimuth)
        offset = 0.8 * np.array([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)])
        relative = look_at(np.array(box["center"]) + offset, np.array(box["center"]))
        world = jump if number >= len(places) // 2 else np.eye(4)
        jpeg = folder / f"{number}.jpg"
        pixels = rng.integers(40, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(jpeg, quality=90)
        truth.append(relative)
        frames.append({
            "jpeg": str(jpeg), "width": WIDTH, "height": HEIGHT, "t": 2.0 + 0.5 * number,
            "view": (world @ anchor @ relative).T.ravel().tolist(),  # column-major
            "anchor": (world @ anchor).T.ravel().tolist(),
            "projection": projection_matrix().T.ravel().tolist(),
        })  # fmt: skip
    return {"object": box, "frames": frames, "truth": truth}


def written(tmp_path: Path, scene: dict[str, Any]) -> tuple[Capture, dict[str, Any]]:
    """Let the recorder's code write the scene; return what the pipeline reads and the recorder's quality summary."""
    told = {key: scene[key] for key in ("object", "frames")}
    done = subprocess.run(
        [TSX, "tools/write-bundle.ts", tmp_path / "bundle.zip"],
        cwd=RECORDER, input=json.dumps(told), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    unpack(tmp_path / "bundle.zip", tmp_path / "bundle")
    assert check_bundle(tmp_path / "bundle") == []
    return read_capture(tmp_path / "bundle"), json.loads(done.stdout)


@pytest.fixture(autouse=True)
def _node() -> None:
    assert shutil.which("node"), "node is needed where the recorder's packages are installed"


def test_the_pipeline_accepts_the_bundle_and_finds_the_cameras(tmp_path: Path) -> None:
    scene = orbit(tmp_path, ((10, 10), (45, 6)))
    capture, _ = written(tmp_path, scene)
    out = tmp_path / "out"
    out.mkdir()
    result = validate(StageInputs({CAPTURE: capture.root}), out, PipelineConfig().validate_, LogProgress())
    assert json.loads((out / "validation.json").read_text())["usable"] == list(range(16))
    assert result.warnings == []
    P = projection_matrix()
    point = np.array([0.03, 0.12, -0.05, 1.0])  # in the anchor's frame
    for frame, relative in zip(capture.frames, scene["truth"], strict=True):
        assert frame.anchor is not None
        anchor, camera = (
            np.block([[Rotation.from_quat(pose.q).as_matrix(), np.array(pose.p)[:, None]], [np.zeros((1, 3)), 1.0]])
            for pose in (frame.anchor, frame.pose_world)
        )
        np.testing.assert_allclose(np.linalg.inv(anchor) @ camera, relative, atol=1e-9)
        # OpenGL's own way to a pixel, against the recorded intrinsics and poses.
        clip = P @ np.linalg.inv(relative) @ point
        expected = [WIDTH * (1 + clip[0] / clip[3]) / 2, HEIGHT * (1 - clip[1] / clip[3]) / 2]
        x, y, z, _ = np.linalg.inv(np.linalg.inv(anchor) @ camera) @ point
        k = frame.intrinsics
        np.testing.assert_allclose([k.cx - k.fx * x / z, k.cy + k.fy * y / z], expected, atol=1e-9)


@pytest.mark.parametrize(
    ("rounds", "arc"),
    [(((10, 24), (40, 24)), 360.0), (((10, 31),), 360.0), (((10, 12), (40, 12)), 200.0), (((5, 9), (30, 9)), 40.0)],
)
def test_the_recorder_judges_as_the_pipeline_does(
    tmp_path: Path, rounds: tuple[tuple[float, int], ...], arc: float
) -> None:
    scene = orbit(tmp_path, rounds, arc)
    _, summary = written(tmp_path, scene)
    centre = np.array(scene["object"]["center"])
    azimuth, elevation = directions(np.array([T[:3, 3] for T in scene["truth"]]), centre)
    theirs = assess(azimuth, elevation, np.ones(len(azimuth)), PipelineConfig().mask)
    assert summary["largestGapDeg"] == pytest.approx(theirs.largest_gap_deg, abs=1e-6)
    assert summary["elevationSpreadDeg"] == pytest.approx(theirs.elevation_spread_deg, abs=1e-6)
    assert (summary["verdict"] == "bad") == bool(theirs.refusals)
    assert len(summary["findings"]) == len(theirs.warnings) + len(theirs.refusals)

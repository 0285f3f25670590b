"""Plain photos and a video: structure from motion on pictures of a textured corner whose cameras are known."""

import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from preprocessing.compensate_poses import compensate
from scan2twin.capture.models import App, CaptureHeader, Device, FrameRecord, Scale
from scan2twin.capture.reader import check_bundle, read_capture
from scan2twin.capture.writer import write_capture
from scan2twin.config import ConditionConfig, ValidateConfig
from scan2twin.errors import CaptureError
from scan2twin.frames import ConditionedFrames
from scan2twin.importers import import_scan
from scan2twin.progress import LogProgress
from scan2twin.stages import CAPTURE, StageInputs, stage_named

SIZE = (480, 360)
FOCAL = 450.0
OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0])


def texture(seed: int) -> np.ndarray:
    """Blobs of every size: features at every distance."""
    rng = np.random.default_rng(seed)
    layers = [cv2.resize(rng.normal(size=(n, n)), (512, 512), interpolation=cv2.INTER_CUBIC) for n in (16, 48, 128)]
    return np.clip(128 + 45 * np.sum(layers, axis=0), 0, 255).astype(np.uint8)


# Three faces of a cube's inside corner: each is where texture coordinates (0..1)² go: origin + s a + t b.
FACES = [
    (texture(k), np.array(origin, float), np.array(a, float), np.array(b, float))
    for k, (origin, a, b) in enumerate(
        [
            ((-1, 0, -1), (2, 0, 0), (0, 0, 2)),
            ((-1, 0, -1), (2, 0, 0), (0, 1.5, 0)),
            ((-1, 0, -1), (0, 0, 2), (0, 1.5, 0)),
        ]
    )
]


def cameras(count: int) -> np.ndarray:
    """Return (N, 4, 4) camera-to-world, OpenGL axes, on an arc before the corner."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    for pose, angle in zip(poses, np.linspace(0.25, 1.25, count), strict=True):
        position = np.array([3.2 * np.cos(angle), 1.4 + 0.3 * np.sin(7 * angle), 3.2 * np.sin(angle)])
        back = position / np.linalg.norm(position)
        right = np.cross([0.0, 1.0, 0.0], back)
        right /= np.linalg.norm(right)
        pose[:3] = np.column_stack([right, np.cross(back, right), back, position])
    return poses


def render(pose: np.ndarray, faces: Sequence[tuple[np.ndarray, ...]] = FACES) -> np.ndarray:
    """Draw the corner: no face hides another from where the cameras stand."""
    K = np.array([[FOCAL, 0, SIZE[0] / 2 - 0.5], [0, FOCAL, SIZE[1] / 2 - 0.5], [0, 0, 1]])
    picture = np.full((SIZE[1], SIZE[0]), 90, np.uint8)
    for pixels, origin, a, b in faces:
        plane = np.column_stack([a, b, origin - pose[:3, 3]])  # of (s, t, 1), relative to the camera
        to_image = K @ OPENGL_TO_OPENCV @ pose[:3, :3].T @ plane @ np.diag([1 / 512, 1 / 512, 1])
        picture = cv2.warpPerspective(
            pixels, to_image, SIZE, dst=picture, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_TRANSPARENT
        )
    return picture


MARKER_SIDE = 1.5 / 4  # world units; it lies on the second face, which 512 texels span by 2 × 1.5


def with_marker(number: int) -> list[tuple[np.ndarray, ...]]:
    """The corner with a marker on its second face, 128 texels high and 96 wide: a square in the world."""
    marker = cv2.aruco.generateImageMarker(cv2.aruco.getPredefinedDictionary(number), 0, 240)
    face = FACES[1][0].copy()
    face[170:330, 190:310] = 255  # a white margin
    face[186:314, 202:298] = cv2.resize(marker[::-1], (96, 128), interpolation=cv2.INTER_AREA)  # rows go up there
    return [FACES[0], (face, *FACES[1][1:]), FACES[2]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for k, pose in enumerate(cameras(8)):
        cv2.imwrite(str(folder / f"IMG_{k:02d}.jpg"), render(pose), [cv2.IMWRITE_JPEG_QUALITY, 95])
    return folder


def test_cameras_are_found_up_to_scale(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    cv2.imwrite(str(tmp_path / "photos/other.jpg"), np.zeros((100, 50), np.uint8))
    done = import_scan(tmp_path / "photos", tmp_path / "bundle")
    assert (done.kind, done.frames) == ("photos", 8)
    assert done.warnings[0].startswith("other.jpg: left out: 50×100 pixels, the others have 480×360")
    assert check_bundle(tmp_path / "bundle") == []
    capture = read_capture(tmp_path / "bundle")
    assert not capture.document.scale.metric
    found = np.array([frame.pose_world.p for frame in capture.frames])
    truth = cameras(8)[:, :3, 3]
    found_c, truth_c = found - found.mean(0), truth - truth.mean(0)
    scale = np.linalg.norm(truth_c) / np.linalg.norm(found_c)
    turn, _ = Rotation.align_vectors(truth_c, found_c)
    assert np.abs(scale * turn.apply(found_c) - truth_c).max() < 0.02 * 3.5
    k = capture.frames[0].intrinsics
    assert k.fx == pytest.approx(FOCAL, rel=0.03)
    assert (k.cx, k.cy) == pytest.approx((240, 180), abs=0.01)
    for frame, pose in zip(capture.frames, cameras(8), strict=True):
        difference = turn * Rotation.from_quat(frame.pose_world.q) * Rotation.from_matrix(pose[:3, :3]).inv()
        assert np.degrees(difference.magnitude()) < 1.0
    # The unit is the distance to what the cameras look at.
    assert np.median(np.linalg.norm(found, axis=1)) == pytest.approx(1)


@pytest.mark.parametrize("number", [cv2.aruco.DICT_4X4_50, cv2.aruco.DICT_APRILTAG_36h11])
def test_a_marker_of_known_size_gives_true_metres(number: int, tmp_path: Path) -> None:
    """Cameras that are known, in a unit of 0.4 m; nerfstudio's file has no scale."""
    write_scan_with_marker(tmp_path / "scan", number)
    done = import_scan(tmp_path / "scan", tmp_path / "bundle", marker_side=MARKER_SIDE * 0.4)
    assert done.warnings == []
    capture = read_capture(tmp_path / "bundle")
    assert capture.document.scale.metric
    distance = np.linalg.norm(np.subtract(capture.frames[0].pose_world.p, capture.frames[-1].pose_world.p))
    truth = np.linalg.norm(cameras(6)[0, :3, 3] - cameras(6)[-1, :3, 3]) * 0.4
    assert distance == pytest.approx(truth, rel=0.005)


def write_scan_with_marker(folder: Path, number: int) -> None:
    """A transforms.json of the corner with a marker in it."""
    folder.mkdir()
    frames = []
    for k, pose in enumerate(cameras(6)):
        cv2.imwrite(str(folder / f"{k}.png"), render(pose, with_marker(number)))
        frames.append({"file_path": f"{k}.png", "transform_matrix": pose.tolist()})
    document = {"fl_x": FOCAL, "w": SIZE[0], "h": SIZE[1], "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(document))


def test_scans_whose_marker_cannot_be_measured_are_refused(tmp_path: Path) -> None:
    write_scan_with_marker(tmp_path / "scan", cv2.aruco.DICT_6X6_50)  # of another kind
    with pytest.raises(CaptureError, match=r"no marker \(ArUco 4×4, .*is a square in at least 3 of the 6 photos"):
        import_scan(tmp_path / "scan", tmp_path / "bundle", marker_side=0.1)
    write_scan_with_marker(tmp_path / "bent", cv2.aruco.DICT_4X4_50)
    document = json.loads((tmp_path / "bent/transforms.json").read_text())
    for k, frame in enumerate(document["frames"]):  # poses that are not those of the photos
        frame["transform_matrix"] = document["frames"][k - 3]["transform_matrix"]
    (tmp_path / "bent/transforms.json").write_text(json.dumps(document))
    with pytest.raises(CaptureError, match="is a square in at least 3 of the 6 photos"):
        import_scan(tmp_path / "bent", tmp_path / "bundle", marker_side=0.1)


def test_a_video_is_photos(tmp_path: Path) -> None:
    video = cv2.VideoWriter(str(tmp_path / "walk.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, SIZE)
    for pose in cameras(15):
        video.write(cv2.cvtColor(render(pose), cv2.COLOR_GRAY2BGR))
    video.release()
    done = import_scan(tmp_path / "walk.mp4", tmp_path / "bundle", max_frames=6)
    assert (done.kind, done.capture_id, done.frames) == ("video", "walk", 6)
    assert len(read_capture(tmp_path / "bundle").frames) == 6


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_cut_off_video_is_refused_by_name(kept: float, tmp_path: Path) -> None:
    video = cv2.VideoWriter(str(tmp_path / "walk.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for k in range(10):
        video.write(np.full((48, 64, 3), 20 * k, np.uint8))
    video.release()
    raw = (tmp_path / "walk.mp4").read_bytes()
    (tmp_path / "walk.mp4").write_bytes(raw[: int(kept * len(raw))])
    with pytest.raises(CaptureError, match=r"walk\.mp4: .*was it cut off"):
        import_scan(tmp_path / "walk.mp4", tmp_path / "bundle")


def test_photos_of_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for k in range(4):
        cv2.imwrite(str(tmp_path / f"photos/{k}.jpg"), np.full((120, 160), 60 + 40 * k, np.uint8))
    with pytest.raises(CaptureError, match="structure from motion found no cameras"):
        import_scan(tmp_path / "photos", tmp_path / "bundle")
    (tmp_path / "photos/0.jpg").write_bytes(b"cut")
    with pytest.raises(CaptureError, match=r"0\.jpg: not a readable photo"):
        import_scan(tmp_path / "photos", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def plain_capture(photos: Path, folder: Path) -> Path:
    """Write photos as a recorder without AR does: nothing is known of their cameras."""
    (folder / "images").mkdir(parents=True)
    records = []
    for i, photo in enumerate(sorted(photos.iterdir())):
        name = f"images/{i:06d}.jpg"
        shutil.copy(photo, folder / name)
        records.append(FrameRecord(i=i, file=name, t=float(i), width=SIZE[0], height=SIZE[1], tracking="lost"))
    header = CaptureHeader(
        capture_id="plain-photos", name="Plain", recorded_at=datetime(2026, 11, 20, tzinfo=UTC),
        app=App(name="tests", version="1"), device=Device(model="none", platform="browser", tracker="none"),
        scale=Scale(metric=False, source="none"),
    )  # fmt: skip
    assert write_capture(folder, header, records).version == "1.1"
    return folder


def test_a_capture_of_plain_photos_gets_its_cameras_in_condition(photos: Path, tmp_path: Path) -> None:
    inputs = {CAPTURE: plain_capture(photos, tmp_path / "capture")}
    for stage, config in (("validate", ValidateConfig()), ("condition", ConditionConfig(min_spacing=0))):
        inputs[stage] = tmp_path / stage
        inputs[stage].mkdir()
        result = stage_named(stage).load()(StageInputs(inputs), inputs[stage], config, LogProgress())
        if stage == "validate":
            assert any("the poses are found" in warning for warning in result.warnings)
    conditioned = ConditionedFrames.read(tmp_path / "condition/cameras.json")
    assert len(conditioned.frames) == 8
    compensated = compensate(conditioned, smooth=True)
    truth = cameras(8)[:, :3, 3]
    # Up to a similarity: the distances between cameras have one ratio to the true ones.
    ratio = [np.linalg.norm(np.diff(places, axis=0), axis=1) for places in (compensated.position, truth)]
    np.testing.assert_allclose(ratio[0] / ratio[1], np.median(ratio[0] / ratio[1]), rtol=0.02)


@pytest.fixture(scope="module")
def short_video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("video") / "walk.mp4"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for k in range(5):
        video.write(np.random.default_rng(k).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    video.release()
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["walk.mp4", "photos/2.jpg", "photos/3.png"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_photos_and_videos_are_refused_and_leave_nothing(
    kind: str, data: st.DataObject, short_video: bytes, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading alone: what comes after it sees decoded pictures."""
    monkeypatch.setattr("scan2twin.importers.photos.structure_from_motion", lambda *_: None)
    shutil.rmtree(tmp_path / "fuzz", ignore_errors=True)
    (tmp_path / "fuzz/photos").mkdir(parents=True)
    for k, photo in enumerate(sorted(photos.iterdir())[:3]):
        shutil.copy(photo, tmp_path / f"fuzz/photos/{k}.jpg")
    cv2.imwrite(str(tmp_path / "fuzz/photos/3.png"), render(cameras(1)[0]))
    file = tmp_path / "fuzz" / kind
    raw = bytearray(short_video if kind == "walk.mp4" else file.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    for _ in range(data.draw(st.integers(0, 20))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(raw)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(
        CaptureError, match=r"structure from motion found no|not a (readable photo|video)|was it cut off"
    ):
        import_scan(file if kind == "walk.mp4" else file.parent, tmp_path / "fuzz/bundle")
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before

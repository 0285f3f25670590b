"""LLFF folders: the published convention, written out here a second time, and folders that are wrong."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from scan2twin.capture.reader import read_capture
from scan2twin.errors import CaptureError
from scan2twin.importers import import_scan

SIZE = (64, 48)
FOCAL = 70.0
POINTS = np.array([[0.1, 0.0, -0.1], [-0.2, 0.15, 0.05], [0.05, -0.2, 0.2]])


def look_at_origin(position: np.ndarray) -> np.ndarray:
    """Return OpenGL camera-to-world 4×4 at `position`, world +Y up."""
    back = position / np.linalg.norm(position)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.column_stack([right, np.cross(back, right), back, position])
    return pose


@pytest.fixture
def scan(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """An LLFF folder of 10 photos in a tilted world, and the (10, 3, 2) pixels of POINTS by the convention itself."""
    tilt = np.eye(4)
    tilt[:3, :3] = Rotation.from_euler("xz", [40, -25], degrees=True).as_matrix()
    (tmp_path / "scan" / "images").mkdir(parents=True)
    (tmp_path / "scan" / "masks").mkdir()
    rows, pixels = [], []
    for k in range(10):
        angle = 2 * np.pi * k / 10
        pose = tilt @ look_at_origin(np.array([2 * np.cos(angle), 0.8, 2 * np.sin(angle)]))
        right, up, back, position = pose[:3].T
        # LLFF states half-size photos here: the real ones are twice as large.
        hwf = [SIZE[1] / 2, SIZE[0] / 2, FOCAL / 2]
        rows.append([*np.column_stack([-up, right, back, position, hwf]).ravel(), 1.0, 3.0])
        local = (POINTS @ tilt[:3, :3].T - position) @ np.column_stack([right, -up, -back])  # x right, y down, z ahead
        pixels.append(FOCAL * local[:, :2] / local[:, 2:] + np.array(SIZE) / 2)
        Image.new("RGB", SIZE, (9 * k, 90, 30)).save(tmp_path / "scan" / "images" / f"IMG_{k}.png")
        Image.new("L", SIZE, 255).save(tmp_path / "scan" / "masks" / f"IMG_{k}.png")
    np.save(tmp_path / "scan" / "poses_bounds.npy", np.array(rows))
    return tmp_path / "scan", np.array(pixels)


def test_known_points_fall_on_the_same_pixels(scan: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    source, pixels = scan
    assert import_scan(source, tmp_path / "bundle").capture_id == "scan"
    capture = read_capture(tmp_path / "bundle")
    # The bundle's world may be turned about +Y against ours: find by how much from the cameras' places.
    ours = [look_at_origin(np.array([2 * np.cos(a), 0.8, 2 * np.sin(a)]))[:3, 3] for a in np.arange(10) * np.pi / 5]
    turn, _ = Rotation.align_vectors([frame.pose_world.p for frame in capture.frames], ours)
    points = turn.apply(POINTS)
    for frame, expected in zip(capture.frames, pixels, strict=True):
        rotation = Rotation.from_quat(frame.pose_world.q)
        x, y, z = rotation.inv().apply(points - frame.pose_world.p).T
        k = frame.intrinsics
        found = np.column_stack([k.cx + k.fx * x / -z, k.cy - k.fy * y / -z])
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert rotation.apply([0, 1, 0])[1] > 0.8  # the cameras stand upright again
    assert len(list((tmp_path / "bundle" / "masks").glob("*.png"))) == 10
    assert capture.document.scale.metric is False


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda scan: (scan / "images" / "IMG_3.png").unlink(), "9 photos"),
        (lambda scan: (scan / "images").rename(scan / "photos"), "0 photos in images/"),
        (lambda scan: (scan / "poses_bounds.npy").write_bytes(b"\x93NUMPY junk"), "not a NumPy array"),
        (lambda scan: np.save(scan / "poses_bounds.npy", np.zeros((10, 16))), "expected an array of N×17"),
        (lambda scan: np.save(scan / "poses_bounds.npy", np.full((10, 17), np.nan)), "not finite"),
        (lambda scan: np.save(scan / "poses_bounds.npy", np.array([{}] * 10), allow_pickle=True), "not a NumPy array"),
        (lambda scan: (scan / "images" / "IMG_3.png").write_bytes(b"cut"), "IMG_3.png: not a readable photo"),
        (lambda scan: Image.new("RGB", (64, 64)).save(scan / "images" / "IMG_3.png"), "IMG_3.png: 64×64"),
    ],
)
def test_wrong_folders_are_refused(scan, tmp_path, harm, said) -> None:  # type: ignore[no-untyped-def]
    harm(scan[0])
    with pytest.raises(CaptureError, match=said):
        import_scan(scan[0], tmp_path / "bundle")
    assert not (tmp_path / "bundle" / "capture.json").exists()

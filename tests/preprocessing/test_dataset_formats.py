"""LLFF and transforms.json, read back by the layouts' published conventions and held against a drawn object."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from preprocessing.dataset_formats import write_llff, write_transforms
from preprocessing.images import UInt8, read_image, write_png
from scan2twin.capture.models import Intrinsics
from scan2twin.capture.reader import read_capture
from scan2twin.frames import Dataset, DatasetFrame
from scan2twin.importers import import_scan

R = 160
UNIT_TO_REFERENCE = np.array([[0.4, 0, 0, 1.0], [0, 0.4, 0, 0.3], [0, 0, 0.4, -2.0], [0, 0, 0, 1]])
# A wedge without any symmetry, so that a mirrored or turned axis shows; unit frame.
CORNERS = np.array([[-0.5, -0.4, -0.3], [0.5, -0.4, -0.3], [-0.5, 0.4, -0.3], [-0.5, -0.4, 0.35], [0.1, 0.3, 0.2]])


def hull_of(pixels: np.ndarray) -> UInt8:
    """The filled convex hull of (N, 2) pixels, drawn four times as fine and averaged."""
    fine = np.zeros((4 * R, 4 * R), np.uint8)
    hull = cv2.convexHull(np.float32(4 * pixels - 0.5))
    cv2.fillConvexPoly(fine, np.rint(hull * 16).astype(np.int32), 255, shift=4)
    return cv2.resize(fine, (R, R), interpolation=cv2.INTER_AREA)


def pinhole(points: np.ndarray, camera_to_world: np.ndarray, fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    x, y, z = ((points - camera_to_world[:3, 3]) @ camera_to_world[:3, :3]).T  # OpenGL: looks along -Z
    return np.column_stack([cx - fx * x / z, cy + fy * y / z])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset of six views, off-centre, of different focal lengths; the last has no weight."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    frames = []
    for i in range(6):
        turn = Rotation.from_euler("YXZ", [60 * i, -20 + 9 * i, 12 * i - 30], degrees=True).as_matrix()
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = turn, turn @ [0.05 * i - 0.1, 0.1, 2.5 + 0.2 * i]
        k = Intrinsics(fx=200.0 + 15 * i, fy=200.0 + 15 * i, cx=R / 2 + 9 - 6 * i, cy=R / 2 + 14 - 3 * i)
        mask = hull_of(pinhole(CORNERS, pose, k.fx, k.fy, k.cx, k.cy))
        write_png(tmp_path / "masks" / f"{i:06d}.png", mask)
        write_png(tmp_path / "images" / f"{i:06d}.png", np.stack([mask, 255 - mask, mask // 2], -1))
        frames.append(
            DatasetFrame(
                index=i,
                image=f"images/{i:06d}.png",
                mask=f"masks/{i:06d}.png",
                intrinsics=k,
                camera_to_unit=pose.tolist(),
                split="heldout" if i == 2 else "train",
                weight=float(i < 5),
            )
        )
    Dataset(
        capture_id="wedge", resolution=R, metric=True, unit_to_reference=UNIT_TO_REFERENCE.tolist(),
        object_size_unit=[1.0, 0.8, 0.65], frames=frames,
    ).write(tmp_path / "dataset.json")  # fmt: skip
    return tmp_path


def in_reference() -> np.ndarray:
    return CORNERS @ UNIT_TO_REFERENCE[:3, :3].T + UNIT_TO_REFERENCE[:3, 3]


def iou(one: UInt8, other: UInt8) -> float:
    a, b = one >= 128, other >= 128
    return float((a & b).sum() / (a | b).sum())


def test_llff_read_as_its_readers_do(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "llff"
    write_llff(folder, Dataset.read(folder / "dataset.json"), out)
    # NeRF's loader: N×17 to 3×5 and bounds; columns [down, right, back] to [right, up, back]; files by sort order.
    table = np.load(out / "poses_bounds.npy")
    matrices, bounds = table[:, :15].reshape(-1, 3, 5), table[:, 15:]
    images, masks = sorted((out / "images").iterdir()), sorted((out / "masks").iterdir())
    assert len(matrices) == len(images) == len(masks) == 5
    height, width, focal = matrices[0, :, 4]  # one for all
    for matrix, bound, image, mask in zip(matrices, bounds, images, masks, strict=True):
        assert matrix[:, 4].tolist() == [height, width, focal] == [R, R, 200.0]
        pose = np.eye(4)
        pose[:3] = np.column_stack([matrix[:, 1], -matrix[:, 0], matrix[:, 2], matrix[:, 3]])
        assert np.allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3))
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
        expected = hull_of(pinhole(in_reference(), pose, focal, focal, width / 2, height / 2))
        assert iou(read_image(mask), expected) > 0.98
        red = read_image(image)[..., 0]
        assert iou(red, expected) > 0.97
        depth = -((in_reference() - pose[:3, 3]) @ pose[:3, 2])
        assert bound[0] < depth.min()
        assert depth.max() < bound[1]


def test_transforms_read_as_its_readers_do(folder: Path) -> None:
    write_transforms(folder, Dataset.read(folder / "dataset.json"))
    document = json.loads((folder / "transforms.json").read_text())
    assert len(document["frames"]) == 5
    assert document["test_filenames"] == ["images/000002.png"]
    applied = np.array(document["applied_transform"])
    points = in_reference() @ applied[:, :3].T + applied[:, 3]
    assert np.allclose(points[:, 2], in_reference()[:, 1])  # +Y up has become +Z up
    assert np.linalg.det(applied[:, :3]) == pytest.approx(1)
    for frame in document["frames"]:
        pose = np.array(frame["transform_matrix"])
        expected = hull_of(pinhole(points, pose, frame["fl_x"], frame["fl_y"], frame["cx"], frame["cy"]))
        assert iou(read_image(folder / frame["mask_path"]), expected) > 0.99
        assert (folder / frame["file_path"]).is_file()


@pytest.mark.parametrize("layout", ["transforms.json", "LLFF"])
def test_our_importers_read_them_back(layout: str, folder: Path, tmp_path: Path) -> None:
    """Written and read by two modules that share nothing but the tool's convention."""
    dataset = Dataset.read(folder / "dataset.json")
    if layout == "LLFF":
        write_llff(folder, dataset, tmp_path / "llff")
    else:
        write_transforms(folder, dataset)
    done = import_scan(tmp_path / "llff" if layout == "LLFF" else folder / "transforms.json", tmp_path / "bundle")
    assert (done.kind, done.frames) == (layout, 5)
    capture = read_capture(tmp_path / "bundle")
    true = np.array([np.array(frame.camera_to_unit) for frame in dataset.frames if frame.weight])
    true[:, :3, 3] = true[:, :3, 3] @ UNIT_TO_REFERENCE[:3, :3].T + UNIT_TO_REFERENCE[:3, 3]
    centres = np.array([frame.pose_world.p for frame in capture.frames])
    # An importer turns the world upright and may move it; the unit stays.
    world, _ = Rotation.align_vectors(true[:, :3, 3] - true[:, :3, 3].mean(0), centres - centres.mean(0))
    for frame, pose in zip(capture.frames, true, strict=True):
        read = np.eye(4)  # LLFF has its principal points at the centre, for which it turns the cameras
        read[:3, :3] = (world * Rotation.from_quat(frame.pose_world.q)).as_matrix()
        read[:3, 3] = world.apply(np.subtract(frame.pose_world.p, centres.mean(0))) + true[:, :3, 3].mean(0)
        np.testing.assert_allclose(read[:3, 3], pose[:3, 3], atol=1e-5)
        k, mask = frame.intrinsics, capture.raster("masks", frame)
        assert mask is not None
        assert iou(read_image(mask), hull_of(pinhole(in_reference(), read, k.fx, k.fy, k.cx, k.cy))) > 0.98

"""LLFF folders (NeRF, nvdiffrec): `images/`, optional `masks/`, `poses_bounds.npy`.

Conventions (Mildenhall et al. 2019, release code): one row a photo in the order of the sorted file names, 17 numbers:
the 3×5 matrix [R | t | h w f] row by row, camera to world, R's columns [down, right, back]; then the near and far
depth. Focal length in pixels of an h × w image; principal point at the centre; no distortion. The world's scale and
up direction are the structure from motion's own, so here +Y is made the mean up direction of the cameras.
"""

import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from scipy.spatial.transform import Rotation

from scan2twin import __version__
from scan2twin.capture.models import App, CaptureHeader, Device, FrameRecord, Intrinsics, Pose, Scale
from scan2twin.capture.writer import write_capture
from scan2twin.errors import CaptureError

POSES = "poses_bounds.npy"
SUFFIXES = {".jpg": ".jpg", ".jpeg": ".jpg", ".png": ".png"}


def import_llff(source: Path, bundle: Path, capture_id: str | None = None) -> str:
    """Write the LLFF folder `source` as a capture bundle into the empty folder `bundle`; return its capture id.

    Raises:
        CaptureError: a file is missing or does not fit the others; every reason is listed.

    """
    rows = _read_rows(source / POSES)
    photos = sorted(path for path in (source / "images").glob("*") if path.suffix.lower() in SUFFIXES)
    if len(photos) != len(rows):
        raise CaptureError(f"{source}: {len(photos)} photos in images/, but {POSES} has {len(rows)} rows")
    for folder in ("images", "masks"):
        (bundle / folder).mkdir(parents=True, exist_ok=True)

    camera_to_world = upright(opengl_poses(rows))
    focal = rows[:, :15].reshape(-1, 3, 5)[:, :, 4]  # h, w, f
    frames, reasons = [], []
    for i, (photo, pose, (height, width, f)) in enumerate(zip(photos, camera_to_world, focal, strict=True)):
        try:
            with Image.open(photo) as image:
                size = image.size
        except (UnidentifiedImageError, OSError) as error:
            reasons.append(f"images/{photo.name}: not a readable image ({error})")
            continue
        if abs(size[0] * height - size[1] * width) > max(width, height):  # more than a pixel of rounding
            reasons.append(
                f"images/{photo.name}: {size[0]}×{size[1]}, {POSES} says {width:.0f}×{height:.0f}: another shape"
            )
            continue
        name = f"{i:06d}{SUFFIXES[photo.suffix.lower()]}"
        shutil.copyfile(photo, bundle / "images" / name)
        mask = source / "masks" / f"{photo.stem}.png"
        if mask.exists():
            with Image.open(mask) as opened:
                opened.convert("L").save(bundle / "masks" / f"{i:06d}.png")
        quaternion = Rotation.from_matrix(pose[:3, :3]).as_quat()
        frames.append(
            FrameRecord(
                i=i, file=f"images/{name}", t=float(i), width=size[0], height=size[1],
                intrinsics=Intrinsics(
                    fx=f * size[0] / width, fy=f * size[1] / height, cx=size[0] / 2, cy=size[1] / 2
                ),
                pose_world=Pose(p=pose[:3, 3].tolist(), q=quaternion.tolist()),
                tracking="normal",
            )
        )  # fmt: skip
    if reasons:
        raise CaptureError(*reasons)
    name = capture_id or re.sub(r"[^a-z0-9]+", "-", source.resolve().name.lower()).strip("-")
    header = CaptureHeader(
        capture_id=name,
        name=source.resolve().name,
        recorded_at=datetime.fromtimestamp(int((source / POSES).stat().st_mtime), UTC),
        app=App(name="scan2twin import", version=__version__),
        device=Device(model="unknown", platform="unknown", tracker="colmap"),
        scale=Scale(metric=False, source="unknown"),
    )
    write_capture(bundle, header, frames)
    return name


def _read_rows(path: Path) -> NDArray[np.float64]:
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CaptureError(f"{path}: missing or not a NumPy array of numbers ({error})") from None
    if rows.ndim != 2 or rows.shape[1] != 17 or not np.issubdtype(rows.dtype, np.number):
        raise CaptureError(f"{path}: shape {rows.shape}, expected N×17 numbers")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise CaptureError(f"{path}: rows {bad[:5].tolist()}: not finite numbers")
    return np.asarray(rows, np.float64)


def opengl_poses(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return camera-to-world (N, 4, 4), OpenGL camera axes, from LLFF rows (N, 17)."""
    matrices = rows[:, :15].reshape(-1, 3, 5)
    down, right, back = matrices[:, :, 0], matrices[:, :, 1], matrices[:, :, 2]
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, :3] = np.stack([right, -down, back], axis=2)
    poses[:, :3, 3] = matrices[:, :, 3]
    return poses


def upright(camera_to_world: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn the world of (N, 4, 4) poses (OpenGL axes) so that the cameras' mean up direction is +Y."""
    up = camera_to_world[:, :3, 1].mean(axis=0)
    turn = np.eye(4)
    turn[:3, :3] = Rotation.align_vectors([[0.0, 1.0, 0.0]], [up])[0].as_matrix()
    turned: NDArray[np.float64] = turn @ camera_to_world
    return turned

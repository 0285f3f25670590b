"""LLFF folders (NeRF, nvdiffrec): `images/`, optional `masks/`, `poses_bounds.npy`.

Conventions (Mildenhall et al. 2019, release code): one row a photo in the order of the sorted file names, 17 numbers:
the 3×5 matrix [R | t | h w f] row by row, camera to world, R's columns [down, right, back]; then the near and far
depth. Focal length in pixels of an h × w image; principal point at the centre; no distortion. The world's scale and
up direction are the structure from motion's own, so here +Y is made the mean up direction of the cameras.
"""

from pathlib import Path

import numpy as np

from scan2twin.capture.models import Intrinsics
from scan2twin.errors import CaptureError
from scan2twin.importers.scan import PHOTO_SUFFIXES, Matrix, Scan, SourceFrame, level

POSES = "poses_bounds.npy"
MAX_BYTES = 1 << 20  # 2,000 rows take 272 kB


def read_llff(source: Path) -> Scan:
    """Read the LLFF folder `source`.

    Raises:
        CaptureError: a file is missing or does not fit the others.

    """
    rows = _read_rows(source / POSES)
    photos = sorted(path for path in (source / "images").glob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    if len(photos) != len(rows):
        raise CaptureError(f"{source.name}: {len(photos)} photos in images/, but {POSES} has {len(rows)} rows")
    sizes = rows[:, :15].reshape(-1, 3, 5)[:, :, 4]  # h, w, f
    if bad := [row for row, size in enumerate(sizes) if not (size >= 1).all() or size.max() > 1e6]:
        raise CaptureError(f"{POSES}: rows {bad[:5]}: height, width and focal length must be pixels")
    frames = []
    for photo, pose, (height, width, focal) in zip(photos, level(opengl_poses(rows)), sizes, strict=True):
        mask = source / "masks" / f"{photo.stem}.png"
        intrinsics = Intrinsics(fx=focal, fy=focal, cx=width / 2, cy=height / 2)
        size = (round(width), round(height))
        frames.append(SourceFrame(photo, pose, intrinsics, size, mask=mask if mask.is_file() else None))
    return Scan(frames, tracker="colmap")


def _read_rows(path: Path) -> Matrix:
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise CaptureError(f"{path.name}: {path.stat().st_size} bytes; 17 numbers a photo take less")
    try:
        rows = np.load(path, allow_pickle=False)
    except Exception as error:  # NumPy's header parser raises whatever Python's own does
        raise CaptureError(f"{path.name}: missing or not a NumPy array of numbers ({error})") from None
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != 17 or rows.dtype.kind not in "fiu":
        raise CaptureError(f"{path.name}: expected an array of N×17 real numbers, got {getattr(rows, 'shape', '')}")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise CaptureError(f"{path.name}: rows {bad[:5].tolist()}: not finite numbers")
    return np.asarray(rows, np.float64)


def opengl_poses(rows: Matrix) -> Matrix:
    """Return camera-to-world (N, 4, 4), OpenGL camera axes, from LLFF rows (N, 17)."""
    matrices = rows[:, :15].reshape(-1, 3, 5)
    down, right, back = matrices[:, :, 0], matrices[:, :, 1], matrices[:, :, 2]
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, :3] = np.stack([right, -down, back], axis=2)
    poses[:, :3, 3] = matrices[:, :, 3]
    return poses

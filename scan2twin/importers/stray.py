"""Stray Scanner: `rgb.mp4`, `camera_matrix.csv`, `odometry.csv`.

Conventions (docs.strayrobots.io, "Data Specification", and the app's own viewer): `odometry.csv` has a header and a row
a video frame: timestamp (s), frame, x y z (m), qx qy qz qw, camera to world with OpenCV camera axes (+Y down, looks
along +Z); later versions add fx fy cx cy. The world is ARKit's: +Y up. `camera_matrix.csv` is the 3×3 camera matrix in
pixels of the video. No distortion.
"""

import csv
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from scan2twin.capture.models import Intrinsics
from scan2twin.errors import CaptureError
from scan2twin.importers.scan import OPENCV_TO_OPENGL, Matrix, Scan, SourceFrame, spread
from scan2twin.importers.video import extract_frames

COLUMNS = ("timestamp", "frame", "x", "y", "z", "qx", "qy", "qz", "qw")
MAX_ROWS = 100_000  # half an hour at 60 frames a second
MAX_LINE = 1000  # characters


def read_stray(source: Path, scratch: Path, max_frames: int) -> Scan:
    """Read the folder `source`; `max_frames` video frames, evenly spread, are written into the folder `scratch`.

    Raises:
        CaptureError: a file is missing, cut off, or does not fit the others.

    """
    rows = _read_rows(source / "odometry.csv")
    matrix = _camera_matrix(source / "camera_matrix.csv")
    chosen = spread(len(rows), max_frames)
    photos = extract_frames(source / "rgb.mp4", [int(rows[row]["frame"]) for row in chosen], scratch)
    frames, missing = [], 0
    for row in chosen:
        values = rows[row]
        photo = photos.get(int(values["frame"]))
        if photo is None:
            missing += 1
            continue
        quaternion = [values[name] for name in ("qx", "qy", "qz", "qw")]
        if np.linalg.norm(quaternion) < 1e-6:
            raise CaptureError(f"odometry.csv: line {row + 2}: the quaternion is zero; record again")
        camera_to_world = np.eye(4)
        camera_to_world[:3, :3] = Rotation.from_quat(quaternion).as_matrix()
        camera_to_world[:3, 3] = [values[name] for name in "xyz"]
        fx, fy, cx, cy = (
            values.get(name, value)
            for name, value in zip(
                ("fx", "fy", "cx", "cy"), (matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]), strict=True
            )
        )
        if not (fx > 0 and fy > 0):
            raise CaptureError(f"odometry.csv: line {row + 2}: fx, fy = {fx:g}, {fy:g}; they are pixels, above 0")
        frames.append(
            SourceFrame(
                photo, camera_to_world @ OPENCV_TO_OPENGL, Intrinsics(fx=fx, fy=fy, cx=cx, cy=cy),
                t=max(0.0, values["timestamp"] - rows[0]["timestamp"]),
            )
        )  # fmt: skip
    warnings = [f"rgb.mp4 lacks {missing} of the {len(chosen)} frames wanted: left out"] if missing else []
    return Scan(frames, tracker="arkit", platform="ios", metric=True, warnings=warnings)


def _read_rows(path: Path) -> list[dict[str, float]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CaptureError(f"{path.name}: missing or not text ({error}); copy the whole recording") from None
    if len(lines) > MAX_ROWS or max(map(len, lines), default=0) > MAX_LINE:
        raise CaptureError(f"{path.name}: not a recording's odometry: {len(lines)} lines")
    header, *table = list(csv.reader(lines)) or [[]]
    names = [name.strip() for name in header]
    if absent := [name for name in COLUMNS if name not in names]:
        raise CaptureError(f"{path.name}: line 1: no column {', '.join(absent)}; expected {', '.join(COLUMNS)}")
    rows: list[dict[str, float]] = []
    for number, line in enumerate(table, 2):
        try:
            row = {name: float(value) for name, value in zip(names, line, strict=True)}
        except ValueError:
            raise CaptureError(f"{path.name}: line {number}: not {len(names)} numbers; was it cut off?") from None
        if not np.isfinite(list(row.values())).all():
            raise CaptureError(f"{path.name}: line {number}: not finite numbers")
        if rows and row["timestamp"] < rows[-1]["timestamp"]:
            raise CaptureError(f"{path.name}: line {number}: timestamp goes back; was the file edited?")
        rows.append(row)
    if not rows:
        raise CaptureError(f"{path.name}: no rows; the recording is empty")
    return rows


def _camera_matrix(path: Path) -> Matrix:
    try:
        lines = path.read_text(encoding="utf-8")[: 9 * MAX_LINE].split("\n")
        matrix = np.array([[float(value) for value in line.split(",")] for line in lines if line.strip()], np.float64)
    except (OSError, ValueError) as error:
        raise CaptureError(f"{path.name}: missing or not 3×3 numbers ({error})") from None
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or min(matrix[0, 0], matrix[1, 1]) <= 0:
        raise CaptureError(f"{path.name}: expected a 3×3 camera matrix with focal lengths above 0")
    return matrix

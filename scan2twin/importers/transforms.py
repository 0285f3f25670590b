"""`transforms.json`: nerfstudio, instant-ngp, NeRFCapture, Blender (NeRF-synthetic: `transforms_*.json`).

Conventions (instant-ngp and nerfstudio documentation): `transform_matrix` is camera to world, row by row, OpenGL camera
axes (+X right, +Y up, looks along -Z). `fl_x fl_y cx cy w h` are pixels, the origin at the image's top-left corner;
without `fl_x`, `camera_angle_x` is the horizontal field of view in radians; without `cx`, the centre. Every key may
stand at the top or in a frame, and the frame's holds. `camera_model` is OPENCV (k1 k2 p1 p2, OpenCV's formulas), with
`k3` (and `k4` … `k6` for FULL_OPENCV), or OPENCV_FISHEYE (k1 k2 k3 k4). The world's up is +Z (nerfstudio, Blender) or
+Y (NeRFCapture, ARKit) and the file does not say which: it is the one nearer to the cameras' mean up. The unit is
anything. NeRFCapture and Blender leave out the photo's suffix; files that do not exist are left out with a warning.
"""

import math
from pathlib import Path

import numpy as np
from pydantic import Field

from scan2twin.capture.models import Distortion, Intrinsics
from scan2twin.capture.names import quoted
from scan2twin.errors import CaptureError
from scan2twin.importers.scan import (
    PHOTO_SUFFIXES,
    Z_UP_TO_Y_UP,
    Scan,
    SourceDocument,
    SourceFrame,
    inside,
    parse,
    photo_size,
    read_json,
)

NAMES = ("transforms.json", "transforms_train.json", "transforms_val.json", "transforms_test.json")
PERSPECTIVE = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "FULL_OPENCV", "SIMPLE_RADIAL", "RADIAL")
SHOWN = 3  # missing files named in the warning


class Camera(SourceDocument):
    """The keys of a camera, at the top or in a frame."""

    camera_model: str | None = None
    camera_angle_x: float | None = Field(None, gt=0, lt=math.pi)
    fl_x: float | None = Field(None, gt=0)
    fl_y: float | None = Field(None, gt=0)
    cx: float | None = None
    cy: float | None = None
    w: float | None = Field(None, ge=1)
    h: float | None = Field(None, ge=1)
    k1: float | None = None
    k2: float | None = None
    k3: float | None = None
    k4: float | None = None
    k5: float | None = None
    k6: float | None = None
    p1: float | None = None
    p2: float | None = None
    is_fisheye: bool | None = None


class Frame(Camera):
    """One frame."""

    file_path: str
    transform_matrix: list[list[float]]
    mask_path: str | None = None


class Transforms(Camera):
    """The document; `frames` are checked one by one, so that a fault names its frame."""

    frames: list[dict[str, object]]


def read_transforms(source: Path) -> Scan:
    """Read the folder `source` with a transforms.json, or the file itself.

    Raises:
        CaptureError: it is not such a file, or a camera is incomplete or wrong.

    """
    root = source if source.is_dir() else source.parent
    paths = [source] if source.is_file() else [root / name for name in NAMES if (root / name).is_file()]
    if source.is_dir() and (root / NAMES[0]).is_file():
        paths = [root / NAMES[0]]
    frames: list[SourceFrame] = []
    missing: list[str] = []
    for path in paths:
        document = parse(Transforms, read_json(path), path.name)
        for number, entry in enumerate(document.frames):
            where = f"{path.name}: frames.{number}"
            frame = parse(Frame, entry, where)
            photo = _photo(root, frame.file_path, where)
            if photo is None:
                missing.append(frame.file_path)
                continue
            frames.append(_source_frame(root, photo, document, frame, where))
    if not frames:
        raise CaptureError(f"{source.name}: none of the {len(missing)} photos it names is there; copy them beside it")
    warnings = []
    if missing:
        named = ", ".join(quoted(name) for name in missing[:SHOWN]) + (", …" if len(missing) > SHOWN else "")
        warnings.append(f"{len(missing)} of {len(missing) + len(frames)} photos are missing and left out: {named}")
    up = np.mean([placed.camera_to_world[:3, 1] for placed in frames], axis=0)
    if up[2] > up[1]:
        for placed in frames:
            placed.camera_to_world = Z_UP_TO_Y_UP @ placed.camera_to_world
    return Scan(frames, tracker="unknown", warnings=warnings)


def _photo(root: Path, name: str, where: str) -> Path | None:
    """Return the photo that `name` means, with any suffix where it has none that exists; None if there is none."""
    path = inside(root, name.replace("\\", "/"))
    if path is None:
        raise CaptureError(f"{where}: file_path: {quoted(name)} is outside the scan's folder; put the photo into it")
    try:
        if path.is_file():
            return path
        found = [path.with_name(path.name + suffix) for suffix in PHOTO_SUFFIXES]
        return next((candidate for candidate in found if candidate.is_file()), None)
    except (OSError, ValueError):  # a name that the file system refuses
        return None


def _source_frame(root: Path, photo: Path, document: Transforms, frame: Frame, where: str) -> SourceFrame:
    stated = {
        name: value
        for name in Camera.model_fields
        if (value := getattr(frame, name) if getattr(frame, name) is not None else getattr(document, name)) is not None
    }
    camera = Camera.model_validate(stated)
    matrix = np.eye(4)
    rows = np.array(frame.transform_matrix if _is_grid(frame.transform_matrix) else [], np.float64)
    if rows.shape not in ((3, 4), (4, 4)):
        raise CaptureError(f"{where}: transform_matrix: expected 4×4 numbers, camera to world")
    matrix[: len(rows)] = rows
    matrix[3] = [0, 0, 0, 1]
    width, height = camera.w, camera.h
    if width is None or height is None:
        width, height = photo_size(photo)
    fx = camera.fl_x
    if fx is None:
        if camera.camera_angle_x is None:
            raise CaptureError(f"{where}: neither fl_x nor camera_angle_x; add the focal length in pixels")
        fx = width / 2 / math.tan(camera.camera_angle_x / 2)
    intrinsics = Intrinsics(
        fx=fx,
        fy=camera.fl_y if camera.fl_y is not None else fx,
        cx=camera.cx if camera.cx is not None else width / 2,
        cy=camera.cy if camera.cy is not None else height / 2,
    )
    mask = inside(root, frame.mask_path) if frame.mask_path else None
    return SourceFrame(
        photo, matrix, intrinsics, (round(width), round(height)), lens(camera, where),
        mask if mask is not None and mask.is_file() else None,
    )  # fmt: skip


def _is_grid(rows: list[list[float]]) -> bool:
    return len({len(row) for row in rows}) == 1


def lens(camera: Camera, where: str) -> Distortion | None:
    """Return the distortion that the keys state; None if there is none."""
    model = camera.camera_model or ("OPENCV_FISHEYE" if camera.is_fisheye else "OPENCV")
    k = [camera.k1 or 0.0, camera.k2 or 0.0, camera.k3 or 0.0, camera.k4 or 0.0]
    if model == "OPENCV_FISHEYE":
        return Distortion(model="opencv_fisheye", k=k)
    if model not in PERSPECTIVE:
        raise CaptureError(f"{where}: camera_model: {quoted(model)} is not known; expected OPENCV or OPENCV_FISHEYE")
    tangential = [camera.p1 or 0.0, camera.p2 or 0.0]
    full = [*k[:2], *tangential, k[2], k[3], camera.k5 or 0.0, camera.k6 or 0.0]
    if not any(full):
        return None
    # k4 belongs to the rational model alone; instant-ngp writes it as 0 or as a fisheye's.
    return Distortion(model="opencv", k=full if model == "FULL_OPENCV" else full[:5])

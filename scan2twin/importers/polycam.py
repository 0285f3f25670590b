"""Polycam's raw data ("developer mode" export): `keyframes/{images,cameras}`, or `corrected_*` where they exist.

Conventions (Polycam's polyform documentation): one `cameras/<timestamp>.json` a photo `images/<timestamp>.jpg`, with
`t_00` … `t_23`, the first three rows of the camera-to-world matrix, row by row, in ARKit's frame: OpenGL camera axes
(+X right, +Y up, looks along -Z), world in metres with +Y up. `fx fy cx cy width height` are pixels of the photo.
`corrected_*` are the same photos after Polycam's bundle adjustment, without distortion.
"""

from pathlib import Path

import numpy as np
from pydantic import Field

from scan2twin.capture.models import Intrinsics
from scan2twin.errors import CaptureError
from scan2twin.importers.scan import PHOTO_SUFFIXES, Scan, SourceDocument, SourceFrame, inside, parse, read_json


class Keyframe(SourceDocument):
    """`cameras/<timestamp>.json`."""

    fx: float = Field(gt=0)
    fy: float = Field(gt=0)
    cx: float
    cy: float
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    t_00: float
    t_01: float
    t_02: float
    t_03: float
    t_10: float
    t_11: float
    t_12: float
    t_13: float
    t_20: float
    t_21: float
    t_22: float
    t_23: float


def read_polycam(source: Path) -> Scan:
    """Read the folder `source` with Polycam's `keyframes/` in it.

    Raises:
        CaptureError: there is no camera, or one of them is wrong.

    """
    keyframes = source / "keyframes"
    corrected = any((keyframes / "corrected_cameras").glob("*.json"))
    prefix = "corrected_" if corrected else ""
    cameras = sorted((keyframes / f"{prefix}cameras").glob("*.json"), key=lambda path: (len(path.stem), path.stem))
    if not cameras:
        raise CaptureError(f"{source.name}: no keyframes/cameras/*.json; export raw data in Polycam's developer mode")
    frames, missing = [], []
    for path in cameras:
        camera = parse(Keyframe, read_json(path), f"{path.parent.name}/{path.name}")
        names = [f"{path.stem}{suffix}" for suffix in PHOTO_SUFFIXES]
        photos = [inside(source, f"keyframes/{prefix}images/{name}") for name in names]
        photo = next((photo for photo in photos if photo is not None and photo.is_file()), None)
        if photo is None:
            missing.append(path.stem)
            continue
        camera_to_world = np.eye(4)
        camera_to_world[:3] = [[getattr(camera, f"t_{row}{column}") for column in range(4)] for row in range(3)]
        intrinsics = Intrinsics(fx=camera.fx, fy=camera.fy, cx=camera.cx, cy=camera.cy)
        frames.append(SourceFrame(photo, camera_to_world, intrinsics, (camera.width, camera.height)))
    if not frames:
        raise CaptureError(f"{source.name}: keyframes/{prefix}images/ has none of the {len(missing)} photos; copy them")
    warnings = [] if corrected else ["Polycam had not adjusted these poses: they are the phone's own"]
    if missing:
        warnings.append(f"{len(missing)} of {len(cameras)} photos are missing and left out: {', '.join(missing[:3])}")
    return Scan(frames, tracker="arkit", platform="ios", metric=True, warnings=warnings)

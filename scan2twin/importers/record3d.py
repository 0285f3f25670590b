"""Record3D's `.r3d` (a zip of `metadata` and `rgbd/`) or its unpacked folder.

Conventions (Record3D's documentation and nerfstudio's reader): `metadata` is JSON with `w`, `h`, `fps`; `K`, the 3×3
camera matrix column by column, pixels of a w × h photo; `poses`, a row a photo [qx qy qz qw x y z], camera to world,
ARKit's frame: OpenGL camera axes, world in metres with +Y up. `perFrameIntrinsicCoeffs`, where it is there, has a row
[fx fy cx cy] a photo. Photos are `rgbd/<number>.jpg`. No distortion.
"""

from pathlib import Path

import numpy as np
from pydantic import Field
from scipy.spatial.transform import Rotation

from scan2twin.capture.models import Intrinsics
from scan2twin.errors import CaptureError
from scan2twin.importers.scan import Scan, SourceDocument, SourceFrame, parse, read_json, spread


class Metadata(SourceDocument):
    """`metadata`."""

    w: int = Field(gt=0)
    h: int = Field(gt=0)
    fps: float = Field(60.0, gt=0)
    K: list[float] = Field(min_length=9, max_length=9)
    poses: list[list[float]]
    perFrameIntrinsicCoeffs: list[list[float]] | None = None  # noqa: N815 (the file's own name)


def read_record3d(source: Path, max_frames: int) -> Scan:
    """Read the unpacked folder `source`; of a longer recording `max_frames` photos, evenly spread.

    Raises:
        CaptureError: the metadata is wrong, or does not fit the photos.

    """
    metadata = parse(Metadata, read_json(source / "metadata"), "metadata")
    photos = sorted(
        (path for path in (source / "rgbd").glob("*.jpg") if path.stem.isascii() and path.stem.isdigit()),
        key=lambda path: int(path.stem),
    )
    if len(photos) != len(metadata.poses):
        raise CaptureError(f"metadata: {len(metadata.poses)} poses, but rgbd/ has {len(photos)} photos; export again")
    coefficients = metadata.perFrameIntrinsicCoeffs
    if coefficients is not None and len(coefficients) != len(photos):
        raise CaptureError(f"metadata: perFrameIntrinsicCoeffs: {len(coefficients)} rows for {len(photos)} photos")
    frames = []
    for row in spread(len(photos), max_frames):
        pose = metadata.poses[row]
        if len(pose) != 7 or np.linalg.norm(pose[:4]) < 1e-6:
            raise CaptureError(f"metadata: poses.{row}: expected a quaternion x y z w and a place x y z, got {pose}")
        camera_to_world = np.eye(4)
        camera_to_world[:3, :3] = Rotation.from_quat(pose[:4]).as_matrix()
        camera_to_world[:3, 3] = pose[4:]
        K = metadata.K
        fx, fy, cx, cy = coefficients[row] if coefficients else (K[0], K[4], K[6], K[7])
        if min(fx, fy) <= 0:
            raise CaptureError(f"metadata: K: focal lengths {fx:g} and {fy:g}; they are pixels, above 0")
        frames.append(
            SourceFrame(
                photos[row], camera_to_world, Intrinsics(fx=fx, fy=fy, cx=cx, cy=cy), (metadata.w, metadata.h),
                t=row / metadata.fps,
            )
        )  # fmt: skip
    return Scan(frames, tracker="arkit", platform="ios", metric=True)

"""Which views are matched with each other, and what of them where only the object counts."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from preprocessing.crop import box_corners, project
from scan2twin.frames import PosedFrames

Array = NDArray[np.float64]

# Views whose directions from the object differ by more share few features (SIFT matches survive about 50°) …
MAX_PAIR_ANGLE_DEG = 60.0
# … and by less than this add nothing to a nearer one: in a dense capture neighbours are spread, not all next to it.
MIN_PAIR_SPREAD_DEG = 5.0
OBJECT_MARGIN = 1.1  # of the object box: it is measured by hand, and the poses are not yet exact


def write_object_masks(posed: PosedFrames, folder: Path) -> Path:
    """Write for every frame where the object box projects to, as `match_frames` wants masks; return `folder`."""
    corners = box_corners(posed.object, OBJECT_MARGIN)
    for frame in posed.frames:
        pixels, depth = project(corners, np.array(frame.camera_to_reference), frame.intrinsics)
        mask = np.zeros((frame.height, frame.width), np.uint8)
        if depth.min() > 0:
            cv2.fillConvexPoly(mask, cv2.convexHull(np.rint(pixels).astype(np.int32)), 255)
        path = folder / f"{frame.file}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    return folder


def choose_pairs(offsets: Array, neighbours: int) -> list[tuple[int, int]]:
    """Choose which views to match: for each its `neighbours` nearest by direction from the object, spread out.

    `offsets` (N × 3) are the camera positions relative to the object's centre. Returns sorted pairs of rows.
    """
    directions = offsets / np.maximum(np.linalg.norm(offsets, axis=1, keepdims=True), 1e-12)
    angle_deg = np.degrees(np.arccos(np.clip(directions @ directions.T, -1, 1)))
    pairs = set()
    for row, angles in enumerate(angle_deg):
        near = [other for other in np.argsort(angles, kind="stable") if other != row]
        near = [other for other in near if angles[other] <= MAX_PAIR_ANGLE_DEG]
        chosen: list[int] = []
        for other in near:
            if all(angle_deg[other, one] >= MIN_PAIR_SPREAD_DEG for one in chosen):
                chosen.append(int(other))
        chosen += [int(other) for other in near if other not in chosen]
        pairs |= {(min(row, other), max(row, other)) for other in chosen[:neighbours]}
    return sorted(pairs)

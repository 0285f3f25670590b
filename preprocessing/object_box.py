"""The object box of a capture that has none: where the cameras look, and how much of it all of them see."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scan2twin.capture.models import ObjectBox
from scan2twin.errors import CaptureError
from scan2twin.frames import ConditionedFrame

Array = NDArray[np.float64]

REWEIGHTINGS = 20  # of the axes, towards least absolute distances; converges in a few
MIN_SPREAD_DEG = 5.0  # axes that turn by less than this do not cross at a definite place
# The cube's side as a share of the widest ball that nine of ten views hold: people leave some room round an object.
FILL = 0.8
# Half the cube's diagonal as a share of the nearest camera's distance, so that no camera stands inside the cube.
NEAREST = 0.8

REMEDY = "walk round the object with it in the middle of the picture, or give `object` in capture.json"


def box_from_cameras(camera_to_reference: Array, frames: Sequence[ConditionedFrame]) -> ObjectBox:
    """Find a cube round what the cameras (N × 4 × 4, looking along -Z) look at.

    The centre is the point nearest to all optical axes; the side comes from the largest ball round it that the
    narrower field of view of nine tenths of the frames holds.

    Raises:
        CaptureError: the axes are nearly parallel, or the point they meet in lies behind cameras.

    """
    origins, forward = camera_to_reference[:, :3, 3], -camera_to_reference[:, :3, 2]
    spread_deg = np.degrees(np.arccos(np.clip(forward @ _unit(forward.sum(axis=0)), -1, 1)).max())
    if spread_deg < MIN_SPREAD_DEG:
        raise CaptureError(f"object: unknown, and all cameras look the same way (within {spread_deg:.1f}°); {REMEDY}")
    centre = nearest_point_to_lines(origins, forward)
    depth = ((centre - origins) * forward).sum(axis=1)
    if (behind := int((depth <= 0).sum())) > len(frames) // 10:
        raise CaptureError(f"object: unknown, and {behind} of {len(frames)} cameras look away from the rest; {REMEDY}")
    distance = np.linalg.norm(centre - origins, axis=1)
    half_angle = [
        np.arctan(min(frame.width / frame.intrinsics.fx, frame.height / frame.intrinsics.fy) / 2) for frame in frames
    ]
    ball_diameter = np.quantile(2 * distance * np.sin(half_angle), 0.1)
    side = float(min(FILL * ball_diameter, NEAREST * distance.min() * 2 / np.sqrt(3)))
    return ObjectBox(center=centre.tolist(), size=[side] * 3)


def nearest_point_to_lines(origins: Array, directions: Array) -> Array:
    """Return the point (3,) with the least sum of distances to N lines (origins N × 3, unit directions N × 3).

    Iteratively reweighted least squares: min Σ w ‖(I − d dᵀ)(x − o)‖² with w = 1 / distance of the last step, so
    a few cameras that look elsewhere do not pull the point away.
    """
    across = np.eye(3) - directions[:, :, None] * directions[:, None, :]  # N × 3 × 3, projects off each line
    weights = np.ones(len(origins))
    point = np.zeros(3)
    for _ in range(REWEIGHTINGS):
        A = (weights[:, None, None] * across).sum(axis=0)
        b = (weights[:, None, None] * across @ origins[:, :, None]).sum(axis=0)[:, 0]
        point = np.linalg.lstsq(A, b)[0]
        distance = np.linalg.norm((across @ (point - origins)[:, :, None])[:, :, 0], axis=1)
        weights = 1 / np.maximum(distance, 1e-3 * max(np.median(distance), 1e-12))
        weights /= weights.sum()
    return point


def _unit(vector: Array) -> Array:
    unit: Array = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return unit

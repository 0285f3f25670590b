"""The capture bundle, version 1.0, as pydantic models (docs/capture-format.md is the text)."""

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

QUATERNION_TOLERANCE = 1e-3  # how far from 1 a quaternion's norm may be


def _unit(q: list[float]) -> list[float]:
    norm = math.sqrt(math.fsum(x * x for x in q))
    if abs(norm - 1) > QUATERNION_TOLERANCE:
        raise ValueError(f"quaternion is not unit: its norm is {norm:.6g}")
    return q


Vector3 = Annotated[list[float], Field(min_length=3, max_length=3)]
Quaternion = Annotated[list[float], Field(min_length=4, max_length=4), AfterValidator(_unit)]  # [x, y, z, w]


class Record(BaseModel):
    """Base of every record of the format: unknown keys, NaN and infinities are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Pose(Record):
    """Camera or anchor to world: position in metres and unit quaternion [x, y, z, w]."""

    p: Vector3
    q: Quaternion


class TrackedAnchor(Pose):
    """The reference anchor's pose in the tracker's world frame at one frame's time."""

    id: str
    tracked: bool


class Intrinsics(Record):
    """Pinhole intrinsics in pixels, origin at the image's top-left corner."""

    fx: float = Field(gt=0)
    fy: float = Field(gt=0)
    cx: float
    cy: float


class ObjectBox(Record):
    """Axis-aligned box round the object in the reference frame, metres."""

    center: Vector3
    size: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]


Tracking = Literal["normal", "limited", "lost"]

"""The JSON files that stages hand to each other: posed frames and the dataset.

Conventions, the same everywhere: `camera_to_X` is a 4×4 matrix, row major, that takes camera coordinates
(OpenGL axes: +X right, +Y up, looks along -Z) to frame X. Intrinsics are in pixels of that image with the
origin at the top-left corner (the first pixel's centre is 0.5, 0.5). The *reference* frame is the object
anchor's (+Y up, metres if `metric`). The *unit* frame is the reference frame moved and scaled so that the
object box is centred at the origin and its longest side is 1; its axes are the reference frame's.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from scan2twin.capture.models import Intrinsics, LensModel, ObjectBox, Pose, TrackedAnchor

Matrix4 = list[list[float]]  # 4×4, row major
Factor = Annotated[float, Field(gt=0)]
Gain = tuple[Factor, Factor, Factor]  # on linear RGB


class Document(BaseModel):
    """Base of the JSON documents between stages: strict, finite, read and written as one file."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the document at `path`."""
        return cls.model_validate_json(path.read_bytes())

    def write(self, path: Path) -> None:
        """Write the document to `path`."""
        path.write_text(self.model_dump_json(indent=1), encoding="utf-8")


class UnusableFrame(Document):
    """A frame that no later stage reads, and why."""

    index: int  # `i` of the capture's frames.jsonl
    reasons: list[str]


class Validation(Document):
    """`validate/validation.json`: which frames later stages may use."""

    capture_id: str
    frame_count: int
    usable: list[int]  # `i` of the capture's frames.jsonl, in recording order
    unusable: list[UnusableFrame]
    warnings: list[str]


class ConditionedFrame(Document):
    """A frame after `condition`: upright, undistorted, fx = fy, principal point at the image centre."""

    index: int  # `i` of the capture's frames.jsonl
    file: str  # images/000000.jpg in the condition stage's folder
    width: int
    height: int
    intrinsics: Intrinsics
    pose_world: Pose  # camera to the tracker's world frame of that moment, after any rotation of the image
    anchor: TrackedAnchor | None  # the reference anchor
    support: list[TrackedAnchor] | None = None  # other anchors, in the same world frame
    tracking: Literal["normal", "limited", "lost"]
    t: float  # when the image was taken, seconds since the first frame
    pose_t: float | None = None  # when the poses were taken; None is `t`
    sharpness: float | None = None
    luma: float | None = None
    # Where this image came from, so that given masks can follow it: maps pixels of this image to pixels of
    # the raw image; see preprocessing.condition.
    source: "SourceCamera"


class SourceCamera(Document):
    """The raw image's camera, enough to warp another raster of the raw image (a mask) the same way."""

    width: int
    height: int
    intrinsics: Intrinsics
    distortion: list[float]  # empty if none
    distortion_model: LensModel = "opencv"  # preprocessing.lens has the formulas
    mirrored: bool = False  # the stored raster is mirrored left to right; undone before the turn
    rotation_quarters: int = 0  # quarter turns counter-clockwise that made the image upright


class ConditionedFrames(Document):
    """`condition/cameras.json`."""

    capture_id: str
    reference_anchor: str | None
    object: ObjectBox | None
    metric: bool
    frames: list[ConditionedFrame]


class PosedFrame(Document):
    """A frame whose camera is known in the reference frame."""

    index: int
    file: str  # in the condition stage's folder
    width: int
    height: int
    intrinsics: Intrinsics
    camera_to_reference: Matrix4
    weight: float = Field(1.0, ge=0, le=1)  # trust in this frame's pose
    # What exposure and white balance did to linear RGB in this frame, against the geometric mean of the frames; None
    # where that is not known.
    gain: Gain | None = None
    guessed: bool = False  # stands in for a pose the tracker did not have: worth nothing until refinement confirms it


class PosedFrames(Document):
    """`compensate_poses/poses.json` and `refine_poses/poses.json`."""

    capture_id: str
    metric: bool
    object: ObjectBox  # in the reference frame; found from the cameras when the capture has none
    unit_to_reference: Matrix4  # similarity: uniform scale and translation
    turntable: bool = False  # the object turned before a camera that stood still: the background does not move with it
    frames: list[PosedFrame]
    # Passes with the object turned over, each in the frame of its own anchor; refine_poses joins them with `frames`.
    turned: list["PosedFrames"] = []


class PixelRectangle(Document):
    """Edges of a rectangle in pixels of an image; (0, 0) is the first pixel's top-left corner, as for intrinsics."""

    left: float
    top: float
    right: float
    bottom: float


class DatasetFrame(Document):
    """A square view: image, mask and camera in the unit frame."""

    index: int
    image: str  # images/000000.png in the dataset's folder, 8-bit sRGB
    mask: str  # masks/000000.png, 8-bit, 255 = object
    intrinsics: Intrinsics  # of this square image
    camera_to_unit: Matrix4  # rigid: rotation, and position in unit-frame lengths
    split: Literal["train", "heldout"]
    weight: float = Field(1.0, ge=0, le=1)  # trust in this view; 0 leaves it out
    gain: Gain | None = None  # as in `PosedFrame`; None: not known, taken as 1
    # What of the square the photo really covers; beyond it the image repeats the photo's border, the mask is 0, and
    # both say nothing of the object. None: the photo covers all of it.
    photo: PixelRectangle | None = None


class Dataset(Document):
    """`mask/dataset.json`: what reconstruct reads."""

    capture_id: str
    resolution: int  # side of every image and mask, pixels
    metric: bool
    unit_to_reference: Matrix4
    object_size_unit: list[float]  # x, y, z extent of the object box in the unit frame; the longest is 1
    frames: list[DatasetFrame]

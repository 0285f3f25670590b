"""The capture bundle, versions 1.0 and 1.1, as pydantic models (docs/capture-format.md is the text).

Every limit of the format is a constant here. A key that may be null may also be left out: both mean unknown. Keys
that version 1.1 added are written only where they say something, so that a bundle without them is a 1.0 bundle.
"""

import math
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer, model_validator

from scan2twin.capture.names import frame_name_fault

# Limits of the format ("Limits" in docs/capture-format.md).
MAX_FRAMES = 2_000
MAX_IMAGE_PIXELS = 64_000_000  # 64 MP, width × height
MAX_UNPACKED_BYTES = 4 * 2**30  # 4 GiB, all files of a bundle together
MAX_DOCUMENT_BYTES = 16 * 2**20  # of capture.json and of frames.jsonl; 2,000 frames take about 1 MiB
QUATERNION_TOLERANCE = 1e-3  # how far from 1 a quaternion's norm may be

CAPTURE_ID_PATTERN = r"^[a-z0-9-]{3,64}$"
LensModel = Literal["opencv", "opencv_fisheye", "thin_prism_fisheye", "fov"]
# How many coefficients each lens model may have; preprocessing.lens has their order and formulas.
DISTORTION_LENGTHS: dict[LensModel, tuple[int, ...]] = {
    "opencv": (4, 5, 8, 12, 14),  # k1 k2 p1 p2 [k3 [k4 k5 k6 [s1 s2 s3 s4 [τx τy]]]]
    "opencv_fisheye": (4,),  # k1 k2 k3 k4
    "thin_prism_fisheye": (8,),  # k1 k2 p1 p2 k3 k4 sx1 sy1
    "fov": (1,),  # ω
}


def _unit(q: list[float]) -> list[float]:
    norm = math.sqrt(math.fsum(x * x for x in q))
    if abs(norm - 1) > QUATERNION_TOLERANCE:
        raise ValueError(f"quaternion is not unit: its norm is {norm:.6g}")
    return q


def _utc(moment: datetime) -> datetime:
    if moment.utcoffset() != timedelta(0):
        raise ValueError("time is not UTC: write it with Z at its end")
    return moment.astimezone(UTC)


def _absent(value: object) -> bool:
    return value is None


def _frame_name(name: str) -> str:
    if fault := frame_name_fault(name):
        raise ValueError(fault)
    return name


Vector3 = Annotated[list[float], Field(min_length=3, max_length=3)]
Quaternion = Annotated[list[float], Field(min_length=4, max_length=4), AfterValidator(_unit)]  # [x, y, z, w]
UtcTime = Annotated[
    AwareDatetime,
    AfterValidator(_utc),
    PlainSerializer(lambda moment: moment.isoformat().replace("+00:00", "Z"), return_type=str),
]


class Record(BaseModel):
    """Base of every record of the format: types are exact; unknown keys, NaN and infinities are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True, serialize_by_alias=True)


class Pose(Record):
    """Camera or anchor to world: position in metres and unit quaternion [x, y, z, w]."""

    p: Vector3
    q: Quaternion


class TrackedAnchor(Pose):
    """An anchor's pose in the tracker's world frame at the time of one frame's pose."""

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
Version = Literal["1.0", "1.1"]


class App(Record):
    """The program that recorded the capture."""

    name: str = Field(max_length=200)
    version: str = Field(max_length=200)


class Device(Record):
    """The device that recorded the capture, and what tracked its camera (arcore, arkit, colmap, …)."""

    model: str = Field(max_length=200)
    platform: str = Field(max_length=200)
    tracker: str = Field(max_length=200)


class Conventions(Record):
    """The conventions of every pose and pixel; a bundle with others is refused."""

    pose: Literal["camera_to_reference"]
    camera_axes: Literal["opengl"]
    up: Literal["+Y"]
    units: Literal["m"]
    quaternion: Literal["xyzw"]
    pixel_origin: Literal["top_left_corner"]


CONVENTIONS = Conventions(
    pose="camera_to_reference", camera_axes="opengl", up="+Y", units="m", quaternion="xyzw",
    pixel_origin="top_left_corner",
)  # fmt: skip


class Anchor(Record):
    """An anchor of the tracker, with its pose (anchor to world) when it was placed and at the end."""

    id: str = Field(min_length=1, max_length=200)
    role: Literal["object", "support"]
    pose_first: Pose
    pose_last: Pose


class Scale(Record):
    """Whether lengths are true metres, and who says so (arcore, marker, …)."""

    metric: bool
    source: str = Field(max_length=200)


class Distortion(Record):
    """Lens distortion of a raw image: its model and that model's coefficients."""

    model: LensModel
    k: list[float]

    @model_validator(mode="after")
    def _fits_model(self) -> Self:
        lengths = DISTORTION_LENGTHS[self.model]
        if len(self.k) not in lengths:
            raise ValueError(
                f"k has {len(self.k)} coefficients; the model {self.model} has {' or '.join(map(str, lengths))}"
            )
        if self.model == "fov" and not 0 < self.k[0] < math.pi:
            raise ValueError(f"k: the model fov has one angle between 0 and π, got {self.k[0]:g}")
        return self


class CameraSettings(Record):
    """What is known of the camera's settings while recording."""

    focus: Literal["auto", "fixed"] | None = None
    exposure_locked: bool | None = None
    distortion: Distortion | None = None


class BundleFile(Record):
    """One file of the bundle: path inside it, size in bytes and SHA-256 (lower-case hexadecimal)."""

    name: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class CaptureHeader(Record):
    """What a recorder knows of a capture besides its frames and files: capture.json without those."""

    capture_id: str = Field(pattern=CAPTURE_ID_PATTERN)
    name: str = Field(max_length=200)
    recorded_at: UtcTime
    app: App
    device: Device
    reference_anchor: str | None = None
    anchors: list[Anchor] = []
    object: ObjectBox | None = None
    scale: Scale
    camera: CameraSettings | None = None


class CaptureDocument(CaptureHeader):
    """`capture.json`: written last, its presence commits the capture."""

    schema_: Literal["scan2twin.capture"] = Field(alias="schema")
    version: Version
    conventions: Conventions
    frame_count: int = Field(ge=0, le=MAX_FRAMES)
    files: list[BundleFile]


class FrameRecord(Record):
    """One line of `frames.jsonl`."""

    i: int = Field(ge=0, le=999_999)
    file: Annotated[str, AfterValidator(_frame_name)]
    t: float = Field(ge=0)  # when the image was taken, seconds since the first frame
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    intrinsics: Intrinsics | None = None  # 1.1: unknown in plain photos only
    pose_world: Pose | None = None  # camera to the tracker's world frame of that moment; 1.1: unknown in plain photos
    anchor: TrackedAnchor | None = None  # the reference anchor; 1.1: the object's other one once it was turned over
    support: list[TrackedAnchor] | None = Field(None, exclude_if=_absent)  # 1.1: other anchors, in the same world frame
    # 1.1: of this frame's lens, where it is not the one that capture.json states
    distortion: Distortion | None = Field(None, exclude_if=_absent)
    pose_t: float | None = Field(None, exclude_if=_absent)  # 1.1: when the poses were taken, where that is not `t`
    tracking: Tracking
    sharpness: float | None = None
    luma: float | None = None
    angular_velocity: float | None = None  # rad/s
    linear_velocity: float | None = None  # m/s
    exposure_s: float | None = None
    iso: float | None = None

    @property
    def pose_time(self) -> float:
        """When the poses were taken, seconds since the first frame."""
        return self.t if self.pose_t is None else self.pose_t

    @model_validator(mode="after")
    def _within_pixel_limit(self) -> Self:
        if self.width * self.height > MAX_IMAGE_PIXELS:
            raise ValueError(
                f"image of {self.width} × {self.height} pixels is over {MAX_IMAGE_PIXELS // 10**6} MP: scale it down"
            )
        return self

"""What every importer returns, and how it becomes a capture bundle.

An importer only reads: it names photos inside its own folder and says where each camera stood. Files are copied
here, under names of our own.
"""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.spatial.transform import Rotation

from scan2twin import __version__
from scan2twin.capture.models import (
    MAX_DOCUMENT_BYTES,
    MAX_FRAMES,
    MAX_IMAGE_PIXELS,
    App,
    CameraSettings,
    CaptureHeader,
    Device,
    Distortion,
    FrameRecord,
    Intrinsics,
    Pose,
    Scale,
)
from scan2twin.capture.names import quoted
from scan2twin.capture.writer import write_capture
from scan2twin.errors import CaptureError
from scan2twin.store.base import DISK_FULL

pillow_heif.register_heif_opener()

Matrix = NDArray[np.float64]
Model = TypeVar("Model", bound=BaseModel)

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".heic", ".webp", ".tif", ".tiff", ".bmp")
# Pillow's name of a format -> the suffix under which a bundle keeps the file as it is; others become PNG.
KEPT_FORMATS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "HEIF": ".heic"}
READ_FORMATS = (*KEPT_FORMATS, "WEBP", "TIFF", "BMP")
OPENCV_TO_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])  # camera axes, from the right: y down, z ahead → y up, z back
Z_UP_TO_Y_UP = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])  # world, from the left
ROTATION_TOLERANCE = 0.01  # of Rᵀ R from the identity; files print six digits, trackers drift by less
MAX_REASONS = 20


class SourceDocument(BaseModel):
    """Base of the records of other tools: keys that we do not know are theirs; NaN and infinities are refused."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


@dataclass
class SourceFrame:
    """One photo with its camera."""

    photo: Path
    camera_to_world: Matrix  # (4, 4), OpenGL camera axes
    intrinsics: Intrinsics
    size: tuple[int, int] | None = None  # width, height that the intrinsics hold for; None: the photo's own
    distortion: Distortion | None = None
    mask: Path | None = None
    t: float | None = None  # seconds; None: only the order is known


@dataclass
class Scan:
    """A scan of another tool; its world has +Y up."""

    frames: Sequence[SourceFrame]
    tracker: str  # what found the poses: arkit, colmap, unknown
    platform: str = "unknown"
    metric: bool = False  # whether the world's unit is the metre
    warnings: list[str] = field(default_factory=list)


def write_scan(
    scan: Scan, source: Path, bundle: Path, capture_id: str | None = None, metres_per_unit: float | None = None
) -> str:
    """Write `scan` of the folder or file `source` as a bundle into the empty folder `bundle`; return its capture id.

    Raises:
        CaptureError: photos cannot be read or have another shape than their cameras, or poses are no poses.

    """
    if len(scan.frames) > MAX_FRAMES:
        raise CaptureError(f"{source.name}: {len(scan.frames)} photos, over the limit of {MAX_FRAMES}; give fewer")
    for folder in ("images", "masks"):
        (bundle / folder).mkdir(parents=True, exist_ok=True)
    lenses = [frame.distortion for frame in scan.frames]
    same_lens = all(lens == lenses[0] for lens in lenses)
    records: list[FrameRecord] = []
    reasons: list[str] = []
    for i, frame in enumerate(scan.frames):
        try:
            records.append(_write_frame(i, frame, bundle, metres_per_unit or 1.0, own_lens=not same_lens))
        except CaptureError as error:
            reasons += error.reasons
    if not scan.frames:
        reasons = [f"{source.name}: no photo with a camera in it"]
    if reasons:
        more = len(reasons) - MAX_REASONS
        raise CaptureError(*reasons[:MAX_REASONS], *([f"… and {more} more faults"] if more > 0 else []))
    name = capture_id or capture_id_of(source)
    metric = scan.metric or metres_per_unit is not None
    header = CaptureHeader(
        capture_id=name,
        name=_printable(source.resolve().name),
        recorded_at=datetime.fromtimestamp(int(source.stat().st_mtime), UTC),
        app=App(name="scan2twin import", version=__version__),
        device=Device(model="unknown", platform=scan.platform, tracker=scan.tracker),
        scale=Scale(metric=metric, source="user" if metres_per_unit else scan.tracker if metric else "unknown"),
        camera=CameraSettings(distortion=lenses[0]) if same_lens and lenses[0] else None,
    )
    write_capture(bundle, header, records)
    return name


def _write_frame(i: int, frame: SourceFrame, bundle: Path, metres_per_unit: float, *, own_lens: bool) -> FrameRecord:
    name, (width, height) = _copy_photo(i, frame.photo, bundle)
    sx = sy = 1.0
    if frame.size is not None:
        sx, sy = width / frame.size[0], height / frame.size[1]
        if abs(width * frame.size[1] - height * frame.size[0]) > max(frame.size):  # more than a pixel of rounding
            raise CaptureError(
                f"{frame.photo.name}: {width}×{height} pixels, but its camera is stated for "
                f"{frame.size[0]}×{frame.size[1]}: another shape; was it cropped or turned?"
            )
    if frame.mask is not None:
        _copy_mask(frame.mask, bundle / "masks" / f"{i:06d}.png", (width, height))
    k = frame.intrinsics
    return FrameRecord(
        i=i,
        file=f"images/{name}",
        t=float(i) if frame.t is None else frame.t,
        width=width,
        height=height,
        intrinsics=Intrinsics(fx=k.fx * sx, fy=k.fy * sy, cx=k.cx * sx, cy=k.cy * sy),
        pose_world=pose_of(frame.camera_to_world, metres_per_unit, frame.photo.name),
        tracking="normal",
        distortion=frame.distortion if own_lens else None,
    )


def pose_of(camera_to_world: Matrix, metres_per_unit: float, where: str) -> Pose:
    """Return a rigid 4×4 camera-to-world matrix as a pose; a uniform scale of its axes is taken out.

    Raises:
        CaptureError: it is not a rotation and a place.

    """
    axes = camera_to_world[:3, :3]
    scale = np.cbrt(abs(np.linalg.det(axes)))
    if not np.isfinite(camera_to_world).all() or scale < 1e-9:
        raise CaptureError(f"{where}: its camera's matrix is not finite, or has no rotation; export the cameras again")
    if np.abs(axes.T @ axes / scale**2 - np.eye(3)).max() > ROTATION_TOLERANCE or np.linalg.det(axes) < 0:
        raise CaptureError(
            f"{where}: its camera's matrix is not a rotation (skewed or mirrored axes); expected camera-to-world"
        )
    return Pose(
        p=(camera_to_world[:3, 3] * metres_per_unit).tolist(), q=Rotation.from_matrix(axes / scale).as_quat().tolist()
    )


@contextmanager
def open_photo(photo: Path) -> Iterator[Image.Image]:
    """Open a photo of a known format within the limit of pixels. Raises CaptureError, in the block too."""
    try:
        with Image.open(photo, formats=[name for name in READ_FORMATS if name != "MPO"]) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise CaptureError(f"{photo.name}: {image.width}×{image.height} pixels, over the limit of 64 MP")
            yield image
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:  # where a copy goes: no fault of the photo
            raise
        raise CaptureError(f"{photo.name}: not a readable photo ({error}); copy it again") from None


def photo_size(photo: Path) -> tuple[int, int]:
    """Return width and height of a photo as stored. Raises CaptureError."""
    with open_photo(photo) as image:
        return image.size


def _copy_photo(i: int, photo: Path, bundle: Path) -> tuple[str, tuple[int, int]]:
    """Copy `photo` as frame `i`; return its name in images/ and its size as stored."""
    with open_photo(photo) as image:
        name = f"{i:06d}{KEPT_FORMATS.get(image.format or '', '.png')}"
        if image.format in KEPT_FORMATS:
            shutil.copyfile(photo, bundle / "images" / name)
        else:
            image.convert("RGB").save(bundle / "images" / name)
        return name, image.size


def _copy_mask(mask: Path, target: Path, size: tuple[int, int]) -> None:
    with open_photo(mask) as image:
        image.convert("L").resize(size, Image.Resampling.NEAREST).save(target)


def level(camera_to_world: Matrix) -> Matrix:
    """Turn the world of (N, 4, 4) poses so that the cameras' mean up direction is +Y: nothing else tells gravity."""
    up = camera_to_world[:, :3, 1].mean(axis=0)
    turn = np.eye(4)
    if np.linalg.norm(up) > 1e-9:
        turn[:3, :3] = Rotation.align_vectors([[0.0, 1.0, 0.0]], [up])[0].as_matrix()
    turned: Matrix = turn @ camera_to_world
    return turned


def nearest_to_rays(places: Matrix, directions: Matrix) -> Matrix:
    """Return the point (3,) nearest to rays from `places` (N, 3) along unit `directions` (N, 3).

    In least squares: the sum over the rays of (I - d dᵀ)(x - c) is 0.
    """
    across = np.eye(3) - directions[:, :, None] * directions[:, None, :]
    point, *_ = np.linalg.lstsq(across.sum(axis=0), (across @ places[:, :, None]).sum(axis=0)[:, 0])
    return np.asarray(point, np.float64)


def capture_id_of(source: Path) -> str:
    """Return a capture id made from the name of `source`."""
    name = re.sub(r"[^a-z0-9]+", "-", source.resolve().stem.lower()).strip("-")[:64].strip("-")
    return name if len(name) >= 3 else f"scan-{name or 'import'}"


def _printable(name: str) -> str:
    return "".join(character for character in name if character.isprintable())[:200] or "scan"


def inside(root: Path, name: str) -> Path | None:
    """Return the path of the file that `name` means in the folder `root`; None where it leaves that folder."""
    try:
        path = (root / name).resolve()
    except (OSError, ValueError, RuntimeError):  # NUL bytes, loops of links
        return None
    return path if path.is_relative_to(root.resolve()) else None


def read_json(path: Path) -> Any:
    """Read a JSON file of another tool. Raises CaptureError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise CaptureError(f"{path.name}: cannot be read ({error.strerror}); is the scan whole?") from None
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise CaptureError(f"{path.name}: over the limit of {MAX_DOCUMENT_BYTES} bytes")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CaptureError(f"{path.name}: not JSON ({error}); was it cut off? copy it again") from None


def parse(model: type[Model], value: Any, where: str) -> Model:
    """Check `value` against `model`; raise CaptureError with every fault, each after `where`."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise CaptureError(
            *(
                f"{where}: {'.'.join(map(str, item['loc'])) or 'document'}: {item['msg']}, got "
                f"{quoted(json.dumps(item['input'], default=str))}"
                for item in error.errors(include_url=False)[:MAX_REASONS]
            )
        ) from None


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` positions, evenly spread and with both ends."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))

"""The validate stage: is this capture whole and right, and which of its frames can be used?

What breaks the format is refused, with every reason at once. A frame that keeps the format but cannot help a
model (tracking lost, no anchor, black) is left out and named in a warning.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from preprocessing.anchors import has_pose, short_gaps
from preprocessing.images import FORMATS, SIXTEEN_BIT_GREY, eight_bit
from preprocessing.parallel import map_frames
from scan2twin.capture.models import MAX_IMAGE_PIXELS, FrameRecord, Intrinsics
from scan2twin.capture.reader import Capture, check_bundle, read_capture
from scan2twin.config import ValidateConfig
from scan2twin.errors import CaptureError
from scan2twin.frames import UnusableFrame, Validation
from scan2twin.progress import Progress
from scan2twin.stages import CAPTURE, StageInputs, StageResult

VALIDATION_FILE = "validation.json"
# An image whose brightest 8×8-pixel patch is below the first (of 255), or whose darkest is above the second, shows
# nothing: a covered lens still has noise.
BLACK_LEVEL, WHITE_LEVEL = 10, 250
# Phone main cameras see 65-80° across, ultra-wide ones 120°, long ones 15°; beyond this a number is wrong.
FIELD_OF_VIEW_RANGE_DEG = (4.0, 150.0)
DECODED_BYTES_PER_PIXEL = 5  # Pillow's RGB takes 4, its grey copy 1
TOO_LARGE = f"over the limit of {MAX_IMAGE_PIXELS // 10**6} MP; scale it down"
IMAGE_MODES = {"L", "RGB", "RGBA", "LA", "P", *SIXTEEN_BIT_GREY}  # Pillow opens 16-bit colour as 8-bit
MASK_MODES = {"L", "1"}
DEPTH_MODES = set(SIXTEEN_BIT_GREY)


@dataclass
class Inspection:
    """What was found in one frame: `faults` break the format, `unusable` only leaves the frame out."""

    faults: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)


def run(inputs: StageInputs, outputs: Path, config: ValidateConfig, progress: Progress) -> StageResult:
    """Check the capture and write `validation.json` (`Validation`).

    Raises:
        CaptureError: the bundle breaks the format, an image cannot be decoded or has another size than stated,
            or fewer than `config.min_frames` frames can be used. Every reason is listed.

    """
    faults = check_bundle(inputs[CAPTURE])
    try:
        capture = read_capture(inputs[CAPTURE])
    except CaptureError:
        raise CaptureError(*faults) from None  # the same reasons and those of the files
    inspections = _inspect_all(capture, progress)
    faults += [fault for inspection in inspections for fault in inspection.faults]
    if faults:
        raise CaptureError(*faults)
    unusable = [
        UnusableFrame(index=frame.i, reasons=inspection.unusable)
        for frame, inspection in zip(capture.frames, inspections, strict=True)
        if inspection.unusable
    ]
    left_out = {frame.index for frame in unusable}
    usable = [frame.i for frame in capture.frames if frame.i not in left_out]
    warnings = [f"frame {frame.index} is left out: {'; '.join(frame.reasons)}" for frame in unusable]
    warnings += list(_capture_warnings(capture))
    if len(usable) < config.min_frames:
        raise CaptureError(
            f"{len(usable)} of {len(capture.frames)} frames can be used, at least {config.min_frames} are needed; "
            "record the object again",
            *warnings,
        )
    Validation(
        capture_id=capture.document.capture_id,
        frame_count=len(capture.frames),
        usable=usable,
        unusable=unusable,
        warnings=warnings,
    ).write(outputs / VALIDATION_FILE)
    return StageResult({"frames": len(capture.frames), "usable": len(usable), "unusable": len(unusable)}, warnings)


def _inspect_all(capture: Capture, progress: Progress) -> list[Inspection]:
    """Inspect every frame, in order, on all cores and with bounded memory."""
    largest = max((frame.width * frame.height for frame in capture.frames), default=1)
    inspections = map_frames(
        lambda frame: inspect_pixels(capture, frame), capture.frames, progress, "checking frames",
        DECODED_BYTES_PER_PIXEL * largest,
    )  # fmt: skip
    if capture.is_plain_photos:  # the condition stage finds their cameras
        _leave_out_copies(capture, inspections)
        return inspections
    reference = capture.document.reference_anchor
    short = short_gaps([has_pose(frame, reference) for frame in capture.frames])
    for frame, inspection, in_short_gap in zip(capture.frames, inspections, short, strict=True):
        if not in_short_gap:  # the frames round it may stand in for its pose: see compensate_poses
            inspection.unusable += pose_reasons(frame, reference)
        if frame.intrinsics and (reason := intrinsics_fault(frame.intrinsics, frame.width, frame.height)):
            inspection.unusable.append(reason)
    _leave_out_copies(capture, inspections)
    return inspections


def _leave_out_copies(capture: Capture, inspections: Sequence[Inspection]) -> None:
    sha256 = {file.name: file.sha256 for file in capture.document.files}
    first_with: dict[str, FrameRecord] = {}
    for frame, inspection in zip(capture.frames, inspections, strict=True):
        if (first := first_with.setdefault(sha256[frame.file], frame)) is not frame:
            inspection.unusable.append(f"{frame.file} is the same image as frame {first.i}'s")


def pose_reasons(frame: FrameRecord, reference_anchor: str | None) -> Iterator[str]:
    """Say why the pose of `frame` cannot be used, from its record alone."""
    if frame.tracking == "lost":
        yield "tracking was lost, so its pose means nothing"
    if has_pose(frame, reference_anchor):
        return
    if reference_anchor is not None and frame.anchor is None:
        yield f"has no pose of the reference anchor {reference_anchor!r}"
    elif frame.anchor is not None and not frame.anchor.tracked:
        yield f"the reference anchor {frame.anchor.id!r} was not tracked"


def intrinsics_fault(intrinsics: Intrinsics, width: int, height: int) -> str | None:
    """Say what is impossible about the intrinsics of an image of `width` × `height` pixels; None if nothing is."""
    if not (0 < intrinsics.cx < width and 0 < intrinsics.cy < height):
        return (
            f"intrinsics: principal point ({intrinsics.cx:g}, {intrinsics.cy:g}) lies outside the image of "
            f"{width} × {height} pixels; are they of another image size or orientation?"
        )
    low, high = FIELD_OF_VIEW_RANGE_DEG
    for name, focal, side in (("fx", intrinsics.fx, width), ("fy", intrinsics.fy, height)):
        degrees = math.degrees(2 * math.atan(side / (2 * focal)))
        if not low <= degrees <= high:
            return f"intrinsics: {name} = {focal:g} px means a field of view of {degrees:.0f}°; is it in pixels?"
    return None


def _capture_warnings(capture: Capture) -> Iterator[str]:
    if repeated := sum(before.t == frame.t for before, frame in pairwise(capture.frames)):
        yield f"frames with the same time as the frame before them: {repeated}; the recorder should stamp each"
    if capture.is_plain_photos:
        yield "plain photos without camera poses: the poses are found from what the photos show"
    if not capture.document.scale.metric:
        yield "the capture has no metric scale: the model's size will not be in true metres"


def inspect_pixels(capture: Capture, frame: FrameRecord) -> Inspection:
    """Decode the frame's image and its mask and depth, if any; never raises for what a file holds."""
    found = Inspection()
    rasters: Mapping[str, tuple[Path | None, set[str]]] = {
        "image": (capture.root / frame.file, IMAGE_MODES),
        "mask": (capture.raster("masks", frame), MASK_MODES),
        "depth": (capture.raster("depth", frame), DEPTH_MODES),
    }
    for kind, (path, modes) in rasters.items():
        if path is None or not path.is_file() or path.is_symlink() or path.parent.is_symlink():
            continue  # not there, or refused by check_bundle
        levels = _decode(path, frame, modes, found.faults)
        if kind != "image" or levels is None:
            continue
        darkest, brightest = levels
        if brightest < BLACK_LEVEL:
            found.unusable.append(f"its image is black (brightest part {brightest} of 255); was the lens covered?")
        if darkest > WHITE_LEVEL:
            found.unusable.append(f"its image is white (darkest part {darkest} of 255); expose for the object")
    return found


def _decode(path: Path, frame: FrameRecord, modes: set[str], faults: list[str]) -> tuple[int, int] | None:
    """Decode one file completely; return its darkest and brightest patch (0-255), or None and add to `faults`."""
    name = path.relative_to(path.parents[1]).as_posix()
    try:
        # The header alone is read here, so an image too large is refused before it takes memory.
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                faults.append(f"{name}: {image.width} × {image.height} pixels, {TOO_LARGE}")
            elif image.size != (frame.width, frame.height):
                faults.append(
                    f"{name}: {image.width} × {image.height} pixels, but frames.jsonl states "
                    f"{frame.width} × {frame.height} for frame {frame.i}; state the size as stored, before rotation"
                )
            elif image.mode not in modes:
                faults.append(f"{name}: pixel format {image.mode}, expected one of {', '.join(sorted(modes))}")
            else:
                image.load()
                patches = np.asarray(eight_bit(image).convert("L").reduce(8))
                return int(patches.min()), int(patches.max())
    except Image.DecompressionBombError:
        faults.append(f"{name}: {TOO_LARGE}")
    except UnidentifiedImageError:
        faults.append(f"{name}: not a JPEG, PNG or HEIC; write it as one")
    except Exception as error:  # a decoder given hostile bytes may raise anything
        faults.append(f"{name}: cannot be decoded ({error}); was it cut off? copy or record it again")
    return None

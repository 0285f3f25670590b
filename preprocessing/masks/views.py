"""Square views of the object: which part of each posed photo is cut out, and the masks that came with it."""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from preprocessing.condition import TargetCamera, warp_image
from preprocessing.crop import Crop, box_corners, box_region, photo_rectangle, project, square_crop, whole_pixels
from preprocessing.images import UInt8, read_alpha, read_mask
from scan2twin.capture.models import Intrinsics
from scan2twin.capture.reader import Capture
from scan2twin.config import MaskConfig
from scan2twin.errors import InputError
from scan2twin.frames import ConditionedFrame, ConditionedFrames, PixelRectangle, PosedFrame, PosedFrames
from scan2twin.store.corrections import INDEX, Corrections

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

REGION_SCALE = 1.1  # the object box is measured by hand or found from the cameras: allow it to be 10 % too small


@dataclass(frozen=True)
class View:
    """One posed frame with its square crop."""

    frame: PosedFrame
    conditioned: ConditionedFrame
    crop: Crop
    region: Bool  # (R, R): where the object box projects to, as far as the photo goes

    @property
    def name(self) -> str:
        """The view's file name in `images/` and `masks/`."""
        return f"{self.frame.index:06d}.png"

    def photo(self, resolution: int) -> PixelRectangle:
        """Return what the photo covers of the crop at `resolution`² pixels."""
        return photo_rectangle(self.crop, self.frame.width, self.frame.height, resolution)

    def seen(self, resolution: int) -> Bool:
        """Return which of the crop's `resolution`² pixels the photo covers; of the others the view knows nothing."""
        seen = np.zeros((resolution, resolution), bool)
        seen[whole_pixels(self.photo(resolution))] = True
        return seen


def make_views(
    posed: PosedFrames, conditioned: ConditionedFrames, config: MaskConfig, outline: Float64 | None = None
) -> tuple[list[View], list[str]]:
    """Return a square view of every posed frame that sees the object box, and a warning for each that does not.

    The squares are laid round `outline`, (N, 3) points of the reference frame; without it round the box's corners.
    """
    by_index = {frame.index: frame for frame in conditioned.frames}
    outline = box_corners(posed.object) if outline is None else outline
    views, warnings = [], []
    for frame in posed.frames:
        camera_to_reference = np.array(frame.camera_to_reference)
        pixels, _ = project(outline, camera_to_reference, frame.intrinsics)
        corners, depth = project(box_corners(posed.object, REGION_SCALE), camera_to_reference, frame.intrinsics)
        crop = square_crop(pixels, frame.width, frame.height, config.margin) if depth.min() > 0 else None
        if crop is None:
            place = "behind or inside" if depth.min() <= 0 else "outside the view of"
            warnings.append(f"frame {frame.index}: left out: the object box is {place} its camera")
            continue
        scale = config.resolution / crop.side
        region = box_region((corners - [crop.left, crop.top]) * scale, config.resolution)
        view = View(frame, by_index[frame.index], crop, region)
        views.append(replace(view, region=region & view.seen(config.resolution)))
    return views, warnings


def camera_to_unit(camera_to_reference: Float64, unit_to_reference: Float64) -> Float64:
    """Return the rigid camera-to-unit 4×4: same axes, position in unit-frame lengths."""
    moved: Float64 = np.linalg.inv(unit_to_reference) @ camera_to_reference
    moved[:3, :3] = camera_to_reference[:3, :3]  # the unit frame has the reference frame's axes; drop its scale
    return moved


def given_mask(capture: Capture, frame: ConditionedFrame) -> UInt8 | None:
    """Return the mask that came with the capture, (height, width) of the conditioned frame; None if none came.

    It is the bundle's `masks/` file or, without one, the image's own alpha channel.
    """
    record = next(record for record in capture.frames if record.i == frame.index)
    path = capture.raster("masks", record)
    raw = read_alpha(capture.root / record.file) if path is None else read_mask(path)
    if raw is None:
        return None
    return warp_image(raw, frame.source, TargetCamera(frame.width, frame.height, frame.intrinsics.fx))


@dataclass(frozen=True)
class Correction:
    """A mask that a person has drawn: its file and, if it was drawn on a square view, that view's intrinsics."""

    path: Path
    square: Intrinsics | None


def read_corrections(folder: Path | None) -> dict[int, Correction]:
    """Return the corrected masks in `folder` by frame number, as the runner puts them there; none without a folder."""
    index = folder / INDEX if folder else None
    if index is None or not index.exists():
        return {}
    listed = Corrections.model_validate_json(index.read_bytes()).masks
    return {mask.frame: Correction(index.with_name(mask.file), mask.intrinsics) for mask in listed}


def corrected_mask(correction: Correction, frame: ConditionedFrame) -> UInt8:
    """Return the mask that a person has corrected, (height, width) of the conditioned frame; 0 beyond its square.

    Raises:
        InputError: it was not drawn on a square, and has another size than the photo.

    """
    raw = read_mask(correction.path)
    if correction.square is None:
        if raw.shape != (frame.source.height, frame.source.width):
            raise InputError(
                f"frame {frame.index}: its corrected mask has {raw.shape[1]}×{raw.shape[0]} pixels, the photo "
                f"{frame.source.width}×{frame.source.height}; draw it on the photo as stored, or on its square view"
            )
        return warp_image(raw, frame.source, TargetCamera(frame.width, frame.height, frame.intrinsics.fx))
    # The square is the same camera, cut and scaled. OpenCV counts from the first pixel's centre.
    square, scale = correction.square, correction.square.fx / frame.intrinsics.fx
    to_square = np.array([
        [scale, 0, square.cx - 0.5 - scale * (frame.intrinsics.cx - 0.5)],
        [0, scale, square.cy - 0.5 - scale * (frame.intrinsics.cy - 0.5)],
    ])  # fmt: skip
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(raw, to_square, (frame.width, frame.height), flags=flags), np.uint8)

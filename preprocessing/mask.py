"""Stage `mask`: square views of the object with soft masks, the dataset that reconstruct reads.

Each photo is cropped to a square round the projected object box. Its mask is the one that came with the capture
(a mask file or the image's alpha channel), or else a network's: the largest connected part inside the box.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from preprocessing.crop import crop_image, crop_intrinsics
from preprocessing.images import read_image, write_png
from preprocessing.masks.backends import MaskBackend, u2netp
from preprocessing.masks.components import cut_share, largest_component, photo_area
from preprocessing.masks.views import View, camera_to_unit, given_mask, make_views
from preprocessing.parallel import map_frames
from scan2twin.capture.reader import Capture, read_capture
from scan2twin.config import MaskConfig
from scan2twin.errors import InputError
from scan2twin.frames import ConditionedFrames, Dataset, DatasetFrame, PosedFrames
from scan2twin.progress import Progress
from scan2twin.stages import CAPTURE, StageInputs, StageResult

MIN_VIEWS = 8  # fewer masked views do not enclose a shape
EMPTY_SHARE = 0.002  # of the crop's pixels: a mask with less is no object
FULL_SHARE = 0.98  # of the box's projection: a mask that fills it is the box, not the object
CUT_SHARE = 0.02  # of the mask's outline: with more of it on the photo's edge, the object leaves the photo


@dataclass(frozen=True)
class MaskedView:
    """A view whose image and mask are written, and what the mask looks like."""

    view: View
    given: bool  # the mask came with the capture
    area: float  # share of the crop
    region_filled: float  # share of the box's projection
    cut: float  # share of the mask's outline that lies on the photo's edge

    @property
    def fault(self) -> str | None:
        """Why the view is left out; None if its mask is usable."""
        if self.area < EMPTY_SHARE:
            return "its mask is empty: no object was found in the object box"
        if self.region_filled > FULL_SHARE:
            return "its mask fills the whole object box: object and background were not told apart"
        return None


def mask_view(
    view: View, capture: Capture, condition: Path, output: Path, config: MaskConfig, backend: Callable[[], MaskBackend]
) -> MaskedView:
    """Write the square image and mask of `view` under `output`."""
    photo = read_image(condition / view.frame.file)
    square = crop_image(photo, view.crop, config.resolution)
    given = given_mask(capture, view.conditioned) if config.backend != "u2netp" else None
    if given is not None:
        mask = crop_image(given, view.crop, config.resolution)
    elif config.backend == "user":
        raise InputError(
            f"frame {view.frame.index}: the capture has no masks/{view.name} and its image has no alpha channel; "
            "add the mask, or set mask.backend to auto"
        )
    else:
        probability = np.rint(255 * backend()(square)).astype(np.uint8)
        mask = largest_component(probability, view.region)
    write_png(output / "images" / view.name, square)
    write_png(output / "masks" / view.name, mask)
    solid = mask >= 128
    photo_here = photo_area(view.crop, view.frame.width, view.frame.height, config.resolution)
    region = view.region & photo_here
    return MaskedView(
        view=view, given=given is not None, area=float(solid.mean()),
        region_filled=float(solid[region].mean()) if region.any() else 0.0,
        cut=cut_share(mask, photo_here),
    )  # fmt: skip


def heldout_views(count: int, every: int) -> list[bool]:
    """Return for each of `count` views in recording order whether it is held out: every `every`-th, never all."""
    if every < 1 or count < 2:
        return [False] * count
    every = max(every, 2)
    return [i % every == every // 2 for i in range(count)]


def run(inputs: StageInputs, outputs: Path, config: MaskConfig, progress: Progress) -> StageResult:
    """Write `images/NNNNNN.png`, `masks/NNNNNN.png` and `dataset.json` (`Dataset`).

    Raises:
        InputError: fewer than `MIN_VIEWS` views have a usable mask; a mask the configuration asks for is missing.

    """
    capture = read_capture(inputs[CAPTURE])
    conditioned = ConditionedFrames.read(inputs["condition"] / "cameras.json")
    posed = PosedFrames.read(inputs["refine_poses"] / "poses.json")
    views, warnings = make_views(posed, conditioned, config)
    for folder in ("images", "masks"):
        (outputs / folder).mkdir(parents=True, exist_ok=True)
    backend = cache(u2netp)  # loaded only when a frame needs it
    masked = map_frames(
        lambda view: mask_view(view, capture, inputs["condition"], outputs, config, backend),
        views, progress, "masking frames",
    )  # fmt: skip

    warnings += [f"frame {one.view.frame.index}: left out: {one.fault}" for one in masked if one.fault]
    cut = [str(one.view.frame.index) for one in masked if not one.fault and one.cut > CUT_SHARE]
    if cut:
        warnings.append(f"the object leaves the photo in frames {', '.join(cut)}: step back a little there")
    usable = [one for one in masked if not one.fault and one.view.frame.weight > 0]
    if len(usable) < MIN_VIEWS:
        raise InputError(
            f"only {len(usable)} of {len(posed.frames)} views have a usable mask, at least {MIN_VIEWS} are needed; "
            "check the object box of the capture, or give masks (masks/NNNNNN.png in the bundle)",
            *warnings,
        )

    unit_to_reference = np.array(posed.unit_to_reference)
    split = heldout_views(len(usable), config.heldout_every)
    heldout = {one.view.name for one, is_heldout in zip(usable, split, strict=True) if is_heldout}
    size = np.array(posed.object.size)
    Dataset(
        capture_id=posed.capture_id, resolution=config.resolution, metric=posed.metric,
        unit_to_reference=posed.unit_to_reference, object_size_unit=(size / size.max()).tolist(),
        frames=[
            DatasetFrame(
                index=one.view.frame.index, image=f"images/{one.view.name}", mask=f"masks/{one.view.name}",
                intrinsics=crop_intrinsics(one.view.frame.intrinsics, one.view.crop, config.resolution),
                camera_to_unit=camera_to_unit(np.array(one.view.frame.camera_to_reference), unit_to_reference).tolist(),
                split="heldout" if one.view.name in heldout else "train",
                weight=0.0 if one.fault else one.view.frame.weight,
            )
            for one in masked
        ],
    ).write(outputs / "dataset.json")  # fmt: skip
    return StageResult(
        metrics={
            "views": len(masked),
            "views_left_out": len(posed.frames) - len(usable),
            "masks_given": sum(one.given for one in masked),
            "heldout": len(heldout),
            "mask_share_median": float(np.median([one.area for one in usable])),
        },
        warnings=warnings,
    )

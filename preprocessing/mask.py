"""Stage `mask`: square views of the object with soft masks, the dataset that reconstruct reads.

Each photo is cropped to a square round the projected object. Its mask is one that a person has corrected, or the one
that came with the capture, or else a network's (see `masks.masker`). A first look at a few views finds how much of the
object box the object fills, so that the crops and the unit box fit it; at the end the masks are brought into agreement
(see `masks.consensus`).
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocessing.crop import crop_intrinsics
from preprocessing.dataset_formats import write_llff, write_transforms
from preprocessing.images import read_image, write_png
from preprocessing.masks.consensus import agreement, consensus, find_body, refine_mask, trust
from preprocessing.masks.contact_sheet import SheetEntry, write_contact_sheet
from preprocessing.masks.masker import CUT_SHARE, MaskedView, Masker, backend_of, by_colour, masked_view
from preprocessing.masks.views import REGION_SCALE, View, camera_to_unit, make_views, read_corrections
from preprocessing.object_points import POINTS_FILE, write_object_points
from preprocessing.parallel import map_frames
from preprocessing.quality import Earlier, assess, directions, draw_coverage
from scan2twin.capture.models import ObjectBox
from scan2twin.capture.reader import read_capture
from scan2twin.config import MaskConfig
from scan2twin.errors import ConfigError, InputError
from scan2twin.frames import ConditionedFrames, Dataset, DatasetFrame, PosedFrames
from scan2twin.progress import Progress
from scan2twin.stages import CAPTURE, CORRECTIONS, StageInputs, StageResult

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

MIN_VIEWS = 8  # fewer masked views do not enclose a shape
FIRST_LOOK_VIEWS = 24  # spread over the capture; enough to bound the object to a few percent
BOX_GROWTHS = (1.0, 1.4)  # of the guessed object box: the first look, and a second if the object reaches the edge
EDGE_SHARE = 0.97  # of half the box: a body that reaches as far is taken to go on beyond
# A network sees this many times the width of a crop that fits the object: without surroundings it takes parts of the
# object for background. (u2netp on the rendered capture, before refining: mean IoU .947 instead of .933.)
WINDOW = 1.4
MIN_TRUST = 0.5  # below, the refiner replaces a mask by what the other views say
REPLACED_TRUST = 0.3  # at least, where what the other views say fits: worth less than what was seen, but something


def fit_box(
    posed: PosedFrames, conditioned: ConditionedFrames, masker: Masker, progress: Progress
) -> tuple[ObjectBox, Float64] | None:
    """Look at a few views and return the box (reference frame) round what they show, and its voxels (N, 3).

    Where the capture came without a box, the one guessed from the cameras may be too small: if what the views show
    reaches its edge, a second look is at a wider one. A box that came with the capture is kept to: it may be there
    to cut the object from what it stands on. None if they do not agree on any body, or fewer than `MIN_VIEWS` show one.
    """
    found = None
    for growth in BOX_GROWTHS if conditioned.object is None else (1.0,):
        box = ObjectBox(center=posed.object.center, size=[growth * extent for extent in posed.object.size])
        views, _ = make_views(posed.model_copy(update={"object": box}), conditioned, masker.config)
        if len(views) < MIN_VIEWS:
            break
        chosen = [views[i] for i in np.unique(np.linspace(0, len(views) - 1, FIRST_LOOK_VIEWS).round().astype(int))]
        looks = map_frames(
            lambda view: masked_view(view, *masker.mask(view, masker.photo(view))),
            chosen, progress, "finding the object", masker.working_bytes,
        )  # fmt: skip
        seen = [look for look in looks if look.fault is None]
        half, centre = np.array(box.size) / 2 * REGION_SCALE, np.array(box.center)
        if len(seen) < MIN_VIEWS:
            break
        body = find_body([look.view for look in seen], [look.ballot for look in seen], centre - half, centre + half)
        if not len(body):
            break
        low, high = body.min(0), body.max(0)
        found = ObjectBox(center=((low + high) / 2).tolist(), size=(high - low).tolist()), body
        if np.all(np.abs(body - centre).max(0) < EDGE_SHARE * half):
            break
    return found


def refine(
    masked: Sequence[MaskedView], box: ObjectBox, outputs: Path, progress: Progress
) -> tuple[list[MaskedView], Float32, list[str]]:
    """Bring the written masks of usable views into agreement, and write them again; given masks stay as they are.

    Returns the views, the trust (V,) that each mask deserves, and warnings.
    """
    half, centre = np.array(box.size) / 2, np.array(box.center)
    views = [one.view for one in masked]
    hull, agreements = consensus(views, [one.ballot for one in masked], centre - half, centre + half)
    if not len(hull.inner):
        return list(masked), np.ones(len(masked), np.float32), ["the masks agree on no common body; not refined"]
    trusts = dict(zip((one.view.name for one in masked), trust(agreements), strict=True))

    def refined(one: MaskedView) -> MaskedView:
        if one.given:
            return one
        path = outputs / "masks" / one.view.name
        photo = read_image(outputs / "images" / one.view.name)
        trusted = trusts[one.view.name] >= MIN_TRUST
        mask = refine_mask(photo, read_image(path), one.view, hull, trusted)
        write_png(path, mask)
        return masked_view(one.view, mask, one.origin if trusted else "replaced")

    after = map_frames(refined, masked, progress, "refining masks")
    final = trust(agreement(views, [one.ballot for one in after], hull))
    warnings = [
        f"frame {one.view.frame.index}: its mask disagreed with the other views"
        + (
            "; it was given, so it stays: look at it"
            if one.given
            else " and was replaced by what they show: look at it"
        )
        for one in after
        if trusts[one.view.name] < MIN_TRUST and one.origin != "corrected"
    ]
    trusted = np.minimum(final, np.maximum(trust(agreements), REPLACED_TRUST))
    trusted[[one.origin == "corrected" for one in after]] = 1  # somebody has looked at it
    return after, trusted, warnings


def without(posed: PosedFrames, excluded: Sequence[int]) -> PosedFrames:
    """Return `posed` without the frames that a person has excluded.

    Raises:
        ConfigError: there is no such frame.

    """
    unknown = sorted(set(excluded) - {frame.index for frame in posed.frames})
    if unknown:
        raise ConfigError(
            f"mask.exclude: no frames {unknown} are left at this stage; give numbers of contact_sheet.jpg"
        )
    return posed.model_copy(update={"frames": [frame for frame in posed.frames if frame.index not in excluded]})


def heldout_views(count: int, every: int) -> list[bool]:
    """Return for each of `count` views in recording order whether it is held out: every `every`-th, never all."""
    if every < 1 or count < 2:
        return [False] * count
    every = max(every, 2)
    return [i % every == every // 2 for i in range(count)]


def run(inputs: StageInputs, outputs: Path, config: MaskConfig, progress: Progress) -> StageResult:
    """Write `images/NNNNNN.png`, `masks/NNNNNN.png`, `dataset.json` (`Dataset`), `contact_sheet.jpg`, `coverage.png`.

    Where poses were refined also `points.npz`, see `object_points`. For other tools also `transforms.json` and, if
    asked for, `llff/`; see `dataset_formats`.

    Raises:
        InputError: fewer than `MIN_VIEWS` views have a usable mask, or all are from one side; a mask that the
            configuration asks for is missing.

    """
    conditioned = ConditionedFrames.read(inputs["condition"] / "cameras.json")
    posed = without(PosedFrames.read(inputs["refine_poses"] / "poses.json"), config.exclude)
    masker = Masker(
        read_capture(inputs[CAPTURE]), inputs["condition"], config, cache(lambda: backend_of(config)),
        read_corrections(inputs.folders.get(CORRECTIONS)),
    )  # fmt: skip
    for folder in ("images", "masks"):
        (outputs / folder).mkdir(parents=True, exist_ok=True)

    views, warnings = make_views(posed, conditioned, config)
    box, window = posed.object, 1.0
    if config.refine and (found := fit_box(posed, conditioned, masker, progress)):
        (box, body), window = found, WINDOW
        views, warnings = make_views(posed.model_copy(update={"object": box}), conditioned, config, body)

    def write(view: View) -> MaskedView:
        photo = masker.photo(view)
        mask, origin = masker.mask(view, photo, window)
        write_png(outputs / "images" / view.name, photo)
        write_png(outputs / "masks" / view.name, mask)
        return masked_view(view, mask, origin)

    masked = map_frames(write, views, progress, "masking frames", masker.working_bytes)
    if config.backend == "auto":
        masked, more = by_colour(masked, outputs, progress)
        warnings += more
    usable = [one for one in masked if one.fault is None and one.view.frame.weight > 0]
    warnings += [f"frame {one.view.frame.index}: left out: {one.fault}" for one in masked if one.fault]
    if len(usable) < MIN_VIEWS:
        raise InputError(
            f"only {len(usable)} of {len(posed.frames)} views have a usable mask, at least {MIN_VIEWS} are needed; "
            "check the object box of the capture, or give masks (masks/NNNNNN.png in the bundle)",
            *warnings,
        )
    if config.backend == "grabcut":
        warnings.append("masks were found by colour alone (mask.backend = grabcut): look at contact_sheet.jpg")
    trusts = np.ones(len(usable), np.float32)
    if config.refine:
        usable, trusts, more = refine(usable, box, outputs, progress)
        warnings += more
    cut = [str(one.view.frame.index) for one in usable if one.cut > CUT_SHARE]
    if cut:
        warnings.append(f"the object leaves the photo in frames {', '.join(cut)}: step back a little there")

    positions = np.array([one.view.frame.camera_to_reference for one in usable])[:, :3, 3]
    azimuth, elevation = directions(positions, np.array(box.center))
    earlier = Earlier.from_manifests(inputs.manifests)
    quality = assess(azimuth, elevation, trusts.astype(np.float64), config, earlier)
    warnings += quality.warnings
    if quality.refusals:
        raise InputError(*quality.refusals, *warnings)
    draw_coverage(outputs / "coverage.png", azimuth, elevation, trusts.astype(np.float64), config)

    trust_of = dict(zip((one.view.name for one in usable), trusts.tolist(), strict=True))
    result = dataset(posed, box, masked, trust_of, config)
    result.write(outputs / "dataset.json")
    write_transforms(outputs, result)
    points = inputs["refine_poses"] / POINTS_FILE  # missing where poses could not be refined
    object_points = write_object_points(points, result, outputs) if points.exists() else 0
    if config.llff:
        write_llff(outputs, result, outputs / "llff")
    described = {one.view.name: one for one in [*masked, *usable]}  # as refined, where it was
    write_contact_sheet(
        outputs,
        f"Masks of {posed.capture_id}: {len(trust_of)} views used, {len(masked) - len(trust_of)} left out",
        [
            SheetEntry(name, trust_of.get(name, 0.0), one.note, one.view.photo(config.resolution))
            for name, one in described.items()
        ],
    )
    return StageResult(
        metrics={
            "views": len(masked),
            "views_left_out": len(posed.frames) - len(usable),
            "masks_given": sum(one.origin == "given" for one in masked),
            "masks_corrected": sum(one.origin == "corrected" for one in masked),
            "masks_by_colour": sum(one.origin == "by colour" for one in masked),
            "mask_share_median": float(np.median([one.area for one in usable])),
            "mask_trust_min": float(trusts.min()),
            "object_size": box.size,
            "object_points": object_points,
            "quality": quality.verdict,
            "largest_gap_deg": quality.largest_gap_deg,
            "elevation_spread_deg": quality.elevation_spread_deg,
        },
        warnings=warnings,
    )


def dataset(
    posed: PosedFrames, box: ObjectBox, masked: Sequence[MaskedView], trusts: dict[str, float], config: MaskConfig
) -> Dataset:
    """Describe the written views in the unit frame of `box`; views without trust have weight 0."""
    size = np.array(box.size)
    unit_to_reference = np.diag([size.max()] * 3 + [1.0])
    unit_to_reference[:3, 3] = box.center
    heldout = dict(zip(trusts, heldout_views(len(trusts), config.heldout_every), strict=True))
    return Dataset(
        capture_id=posed.capture_id, resolution=config.resolution, metric=posed.metric,
        unit_to_reference=unit_to_reference.tolist(), object_size_unit=(size / size.max()).tolist(),
        frames=[
            DatasetFrame(
                index=one.view.frame.index, image=f"images/{one.view.name}", mask=f"masks/{one.view.name}",
                intrinsics=crop_intrinsics(one.view.frame.intrinsics, one.view.crop, config.resolution),
                camera_to_unit=camera_to_unit(np.array(one.view.frame.camera_to_reference), unit_to_reference).tolist(),
                split="heldout" if heldout.get(one.view.name) else "train",
                weight=one.view.frame.weight * trusts.get(one.view.name, 0.0),
                gain=one.view.frame.gain,
                photo=one.view.photo(config.resolution),
            )
            for one in masked
        ],
    )  # fmt: skip

"""Masks of single views: where each comes from, what it looks like, and what is done where a network finds nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from preprocessing.crop import crop_image, grown_crop, recrop
from preprocessing.images import UInt8, read_image, write_png
from preprocessing.masks.backends import MaskBackend, grabcut, network, u2netp
from preprocessing.masks.components import cut_share, largest_component
from preprocessing.masks.consensus import ballot
from preprocessing.masks.views import Correction, View, corrected_mask, given_mask
from preprocessing.parallel import map_frames
from scan2twin.capture.reader import Capture
from scan2twin.config import MaskConfig
from scan2twin.errors import InputError
from scan2twin.progress import Progress

Float32 = npt.NDArray[np.float32]
# Where a mask comes from: a network, colours, the other views' masks; a person made the last two.
Origin = Literal["found", "by colour", "replaced", "given", "corrected"]

# What one run of a network holds: u2netp at 320² (measured), and ISNet at 1024², the largest in use (measured).
U2NETP_BYTES, NETWORK_BYTES = 280 << 20, 1700 << 20
EMPTY_SHARE = 0.002  # of the crop's pixels: a mask with less is no object
FULL_SHARE = 0.98  # of the box's projection: a mask that fills it is the box, not the object
MAX_FAILED_SHARE = 0.5  # of the views: a network that finds nothing in more of them does not know such objects
CUT_SHARE = 0.02  # of the mask's outline: with more of it on the photo's edge, the object leaves the photo


@dataclass(frozen=True)
class Masker:
    """Cuts out views and finds their masks."""

    capture: Capture
    condition: Path  # folder of the condition stage
    config: MaskConfig
    backend: Callable[[], MaskBackend]  # loaded only when a view needs it
    corrections: Mapping[int, Correction]  # by frame number

    @property
    def working_bytes(self) -> int:
        """What masking one view holds at its peak."""
        return NETWORK_BYTES if self.config.network or self.config.backend == "carvekit" else U2NETP_BYTES

    def photo(self, view: View) -> UInt8:
        """Return the view's square photo (R, R, 3)."""
        return crop_image(read_image(self.condition / view.frame.file), view.crop, self.config.resolution)

    def mask(self, view: View, photo: UInt8, window: float = 1.0) -> tuple[UInt8, Origin]:
        """Return the view's soft mask (R, R), not refined, and where it comes from.

        A network looks at a square `window` times as wide as the crop.
        """
        resolution = self.config.resolution
        if correction := self.corrections.get(view.frame.index):
            return crop_image(corrected_mask(correction, view.conditioned), view.crop, resolution), "corrected"
        given = given_mask(self.capture, view.conditioned) if self.config.backend in ("auto", "user") else None
        if given is not None:
            return crop_image(given, view.crop, resolution), "given"
        if self.config.backend == "user":
            raise InputError(
                f"frame {view.frame.index}: the capture has no masks/{view.name} and its image has no alpha channel; "
                "add the mask, or set mask.backend to auto"
            )
        if window == 1 or self.config.backend == "grabcut":
            return found_mask(self.backend()(photo, view.region), view), "found"
        wide = grown_crop(view.crop, window, view.frame.width, view.frame.height)
        surroundings = crop_image(read_image(self.condition / view.frame.file), wide, resolution)
        probability = self.backend()(surroundings, np.ones((resolution, resolution), bool))
        return found_mask(recrop(probability, wide, view.crop), view), "found"


def found_mask(probability: Float32, view: View) -> UInt8:
    """Return the largest part (R, R) inside the object box of what a back end finds, `probability` (R, R) in 0..1."""
    return largest_component(np.rint(255 * probability).astype(np.uint8), view.region)


@dataclass(frozen=True)
class MaskedView:
    """A view whose image and mask are written, and what the mask looks like."""

    view: View
    origin: Origin
    ballot: UInt8  # the mask, small
    area: float  # share of the crop
    region_filled: float  # share of the box's projection
    cut: float  # share of the mask's outline that lies on the photo's edge

    @property
    def given(self) -> bool:
        """Whether a person made the mask: then it votes, but is never changed."""
        return self.origin in ("given", "corrected")

    @property
    def fault(self) -> str | None:
        """Why the view is left out; None if its mask is usable."""
        if self.area < EMPTY_SHARE:
            return "its mask is empty: no object was found in the object box"
        if self.region_filled > FULL_SHARE:
            return "its mask fills the whole object box: object and background were not told apart"
        return None

    @property
    def note(self) -> str:
        """A word or two on the mask for the contact sheet."""
        if self.fault:
            return "empty" if self.area < EMPTY_SHARE else "full"
        return "cut off" if self.cut > CUT_SHARE else "" if self.origin == "found" else self.origin


def masked_view(view: View, mask: UInt8, origin: Origin) -> MaskedView:
    """Describe the mask (R, R) of `view`."""
    solid = mask >= 128
    return MaskedView(
        view=view, origin=origin, ballot=ballot(mask), area=float(solid.mean()),
        region_filled=float(solid[view.region].mean()) if view.region.any() else 0.0,
        cut=cut_share(mask, view.seen(len(mask))),
    )  # fmt: skip


def by_colour(masked: Sequence[MaskedView], outputs: Path, progress: Progress) -> tuple[list[MaskedView], list[str]]:
    """Find by colour the masks that the network did not, if it did not in most views; returns all, and a warning."""
    found = [one for one in masked if one.origin == "found"]
    failed = [one for one in found if one.fault]
    if len(failed) <= MAX_FAILED_SHARE * len(found):
        return list(masked), []

    def again(one: MaskedView) -> MaskedView:
        photo = read_image(outputs / "images" / one.view.name)
        mask = found_mask(grabcut(photo, one.view.region), one.view)
        write_png(outputs / "masks" / one.view.name, mask)
        return masked_view(one.view, mask, "by colour")

    new = {one.view.name: one for one in map_frames(again, failed, progress, "masking by colour")}
    return [new.get(one.view.name, one) for one in masked], [
        f"the network found the object in only {len(found) - len(failed)} of {len(found)} photos; in the others it was "
        "cut out by colour alone: look at contact_sheet.jpg, choose another network, or give masks"
    ]


def backend_of(config: MaskConfig) -> MaskBackend:
    """Return what finds the masks that did not come with the capture.

    Raises:
        ConfigError: the configured network is not there or not the right one.

    """
    if config.backend == "grabcut":
        return grabcut
    if config.backend == "carvekit":
        from preprocessing.masks.carvekit_masks import CarveKitBackend  # optional, and slow to import

        return CarveKitBackend(config.carvekit_network, config.carvekit_matting)
    if config.network is None:
        return u2netp()
    return network(config.network, config.network_sha256, config.network_normalisation)

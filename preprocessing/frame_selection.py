"""Which frames are worth keeping: not blurred, and not taken from where a sharper one was; but no side is lost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

Float64 = npt.NDArray[np.float64]

NEIGHBOURS = 4  # frames on each side
# The usual spacing of a capture is this percentile of the distances to the nearest other camera: above the median,
# so that a capture half of which stands still keeps its measure.
SPACING_PERCENTILE = 75
LONELY = 2.0  # spacings without a sharp camera: dropping the frame would leave a hole twice the usual width
SAME_VIEW_DEG = 10.0  # cameras at one place whose optical axes differ by more show different things
TRACKER_NOISE_M = 0.005  # where metric poses lie closer, noise is all they tell (the object turned, not the camera)


@dataclass
class Selection:
    """What was found of N frames, by row; rows in none of these are good."""

    blurred: dict[int, float] = field(default_factory=dict)  # to drop -> share of the neighbours' sharpness
    needed: dict[int, float] = field(default_factory=dict)  # as blurred, but nothing else shows that side: to keep
    repeated: dict[int, int] = field(default_factory=dict)  # to drop -> the sharper frame from the same place

    @property
    def dropped(self) -> set[int]:
        """The rows to leave out."""
        return {*self.blurred, *self.repeated}


def relative_sharpness(sharpness: Float64) -> Float64:
    """Return each frame's sharpness (N,) as a share of the median of its up to 2 · `NEIGHBOURS` neighbours.

    `sharpness` is the variance of the Laplacian in recording order. Motion blur brings it down to a few percent;
    between views of one object it varies by a factor of two. A frame without neighbours, or among black ones, is 1.
    """
    shares = np.ones(len(sharpness))
    for i, value in enumerate(sharpness):
        around = np.delete(sharpness[max(0, i - NEIGHBOURS) : i + NEIGHBOURS + 1], i - max(0, i - NEIGHBOURS))
        if len(around) and np.median(around) > 0:
            shares[i] = value / np.median(around)
    return shares


def select_frames(
    sharpness: Float64, position: Float64, forward: Float64, *, metric: bool, min_sharpness: float, min_spacing: float,
    passes: Sequence[str | None] | None = None,
) -> Selection:  # fmt: skip
    """Choose among N frames in recording order.

    `position` (N, 3) are the camera centres and `forward` (N, 3) the unit optical axes in one frame that holds for
    the whole capture, metres if `metric`; NaN where unknown. Where the object was turned over, one holds for each of
    `passes` (N,): what is near in another pass shows another side. A frame under `min_sharpness` of its neighbours
    goes, unless no better one was taken near it. Of two closer than `min_spacing` of the usual spacing the less sharp
    goes.
    """
    shares = relative_sharpness(sharpness)
    gap = _gaps(position)
    if passes is not None:
        gap[np.not_equal.outer(np.array(passes, object), np.array(passes, object))] = math.inf
    nearest_gap = gap.min(axis=1)
    known = np.isfinite(nearest_gap)
    spacing = float(np.percentile(nearest_gap[known], SPACING_PERCENTILE)) if known.any() else 0.0
    sharpest_first = np.argsort(-sharpness, kind="stable").tolist()
    selection = Selection()
    kept = [row for row in sharpest_first if shares[row] >= min_sharpness]
    for row in sharpest_first:
        if shares[row] >= min_sharpness:
            continue
        if LONELY * spacing < gap[row, kept].min(initial=math.inf) < math.inf:
            selection.needed[row] = float(shares[row])
            kept.append(row)
        else:
            selection.blurred[row] = float(shares[row])
    if metric and spacing < TRACKER_NOISE_M:
        return selection
    first: list[int] = []
    for row in kept:
        turned = np.degrees(np.arccos(np.clip(forward[first] @ forward[row], -1, 1)))
        again = [k for k, near in zip(first, turned < SAME_VIEW_DEG, strict=True) if near]
        nearest = min(again, key=lambda k: gap[row, k], default=None)
        if nearest is not None and gap[row, nearest] < min_spacing * spacing:
            selection.repeated[row] = nearest
        else:
            first.append(row)
    return selection


def _gaps(position: Float64) -> Float64:
    """Return the distances between all N places (N, N); infinite to oneself and to unknown ones."""
    gap = cdist(position, position)
    np.fill_diagonal(gap, math.inf)
    return np.where(np.isnan(gap), math.inf, gap)

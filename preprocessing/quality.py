"""Whether a capture can give a good model, in sentences that the person with the phone understands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scan2twin.config import QualityLimits

Float64 = npt.NDArray[np.float64]

SIDES = ("the front", "the front right", "the right", "behind on the right",
         "behind", "behind on the left", "the left", "the front left")  # fmt: skip
DOUBTFUL_TRUST = 0.5  # as in the masks' refiner: below, a mask was replaced


@dataclass(frozen=True)
class Earlier:
    """What the stages before found; None where they did not say."""

    photos: int | None = None  # looked at
    blurred: int | None = None  # of them, left out
    residual_px: float | None = None  # median reprojection error of the refined poses

    @classmethod
    def from_manifests(cls, manifests: Mapping[str, Mapping[str, Any]]) -> "Earlier":
        """Read it from the manifests of the stages `condition` and `refine_poses`."""
        condition = manifests.get("condition", {}).get("metrics", {})
        refine_poses = manifests.get("refine_poses", {}).get("metrics", {})
        blurred = condition.get("frames_blurred")
        return cls(
            photos=None if blurred is None else condition["frames"] + blurred,
            blurred=blurred,
            residual_px=refine_poses.get("reprojection_px") if refine_poses.get("refined") else None,
        )


@dataclass(frozen=True)
class Quality:
    """What was found: `refusals` stop the run, `warnings` are shown with its result."""

    largest_gap_deg: float
    elevation_spread_deg: float
    warnings: Sequence[str]
    refusals: Sequence[str]

    @property
    def verdict(self) -> Literal["pass", "warn", "refuse"]:
        """The gate in one word."""
        return "refuse" if self.refusals else "warn" if self.warnings else "pass"


def directions(camera_positions: Float64, centre: Float64) -> tuple[Float64, Float64]:
    """Return azimuth and elevation (N,), degrees, of cameras at (N, 3) seen from the object's centre; +Y is up.

    Azimuth 0 is where the first camera stands, the front; it grows to the object's right as seen from there.
    """
    x, y, z = (camera_positions - centre).T
    azimuth = np.degrees(np.arctan2(x, z))
    elevation = np.degrees(np.arctan2(y, np.hypot(x, z)))
    return (azimuth - azimuth[0]) % 360, elevation


def largest_gap(azimuth: Float64) -> tuple[float, float]:
    """Return the width of the largest gap between azimuths (N,), and its middle; degrees."""
    ordered = np.sort(azimuth)
    gaps = np.diff(np.append(ordered, ordered[0] + 360))
    widest = int(np.argmax(gaps))
    return float(gaps[widest]), float((ordered[widest] + gaps[widest] / 2) % 360)


def assess(
    azimuth: Float64, elevation: Float64, trusts: Float64, limits: QualityLimits, earlier: Earlier | None = None
) -> Quality:
    """Judge views by their directions (N,), degrees, and how far their masks can be trusted (N,), 0..1."""
    earlier = earlier or Earlier()
    gap, middle = largest_gap(azimuth)
    spread = float(np.ptp(elevation))
    side = SIDES[round(middle / 45) % len(SIDES)]
    warnings, refusals = [], []

    if len(azimuth) < limits.refuse_views:
        refusals.append(
            f"only {len(azimuth)} photos show the object, at least {limits.refuse_views} are needed: take more, all "
            "the way round"
        )
    elif len(azimuth) < limits.warn_views:
        warnings.append(f"only {len(azimuth)} photos show the object: {limits.warn_views} or more give a better model")
    if gap > limits.refuse_gap_deg:
        refusals.append(
            f"all photos are from one side (within {360 - gap:.0f}°): no shape can be made of that; "
            "walk all the way round the object"
        )
    elif gap > limits.warn_gap_deg:
        warnings.append(
            f"no views from {side} ({gap:.0f}° without a photo): that side will be guessed; walk all the way round"
        )
    if spread < limits.warn_elevation_deg:
        warnings.append(
            f"all photos are from one height (within {spread:.0f}°): top and undersides will be rough; "
            "add a round from higher up and one from lower down"
        )
    if earlier.photos and earlier.blurred is not None:
        found = f"{earlier.blurred} of {earlier.photos} photos are blurred"
        remedy = "give more light, and move the phone slowly or stop for each photo"
        _judge(
            earlier.blurred / earlier.photos, limits.warn_blurred, limits.refuse_blurred,
            f"{found} and were left out: {remedy}", f"{found}: record again; {remedy}", warnings, refusals,
        )  # fmt: skip
    if earlier.residual_px is not None:
        found = f"the photos do not fit together exactly (off by {earlier.residual_px:.1f} pixels)"
        remedy = "keep the object and what is round it still, the zoom fixed, and the light on"
        _judge(
            earlier.residual_px, limits.warn_residual_px, limits.refuse_residual_px,
            f"{found}: the model will be soft; {remedy}", f"{found}: record again; {remedy}", warnings, refusals,
        )  # fmt: skip
    doubtful = int(np.count_nonzero(trusts < DOUBTFUL_TRUST))
    found = f"in {doubtful} of {len(trusts)} photos the object was hard to tell from its background"
    remedy = "a plainer background of another colour helps"
    _judge(
        doubtful / len(trusts), limits.warn_doubtful, limits.refuse_doubtful,
        f"{found}: look at contact_sheet.jpg; {remedy}", f"{found}: give masks, or record again; {remedy}",
        warnings, refusals,
    )  # fmt: skip
    return Quality(gap, spread, warnings, refusals)


def _judge(
    value: float, warn: float, refuse: float, warning: str, refusal: str, warnings: list[str], refusals: list[str]
) -> None:
    if value > refuse:
        refusals.append(refusal)
    elif value > warn:
        warnings.append(warning)


def draw_coverage(path: Path, azimuth: Float64, elevation: Float64, trusts: Float64, limits: QualityLimits) -> None:
    """Draw from above where the cameras stood: the object in the middle, the front at the bottom, trust as colour.

    A side without a view that is wider than the limit is shaded.
    """
    figure = Figure(figsize=(6, 5.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot(projection="polar")  # PolarAxes, which the stubs do not know
    axes.set_theta_zero_location("S")
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 30, 60, 90], labels=["90° up", "60°", "30°", "0°"], fontsize=8)  # the middle is straight above
    axes.set_xticks(np.radians(np.arange(0, 360, 45)), labels=["front", "", "right", "", "back", "", "left", ""])
    gap, middle = largest_gap(azimuth)
    if gap > limits.warn_gap_deg:
        axes.bar(np.radians(middle), 100, width=np.radians(gap), color="tab:red", alpha=0.15, zorder=0)
        axes.annotate("no views", (np.radians(middle), 60), ha="center", va="center", color="tab:red")
    dots = axes.scatter(
        np.radians(azimuth), np.clip(90 - elevation, 0, 100), c=trusts, cmap="RdYlGn", vmin=0, vmax=1,
        edgecolors="black", linewidths=0.5, zorder=3,
    )  # fmt: skip
    figure.colorbar(dots, shrink=0.6, pad=0.1, label="trust in the mask")
    axes.set_title(f"{len(azimuth)} views, by direction and height; widest gap {gap:.0f}°")
    figure.savefig(path)

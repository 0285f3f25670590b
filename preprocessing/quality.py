"""Whether a capture can give a good model, in sentences that the person with the phone understands."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scan2twin.config import MaskConfig

Float64 = npt.NDArray[np.float64]

GOOD_VIEWS = 30  # nvdiffrec's maintainers ask for 50; the rendered capture loses little down to 30
SIDES = ("the front", "the front right", "the right", "behind on the right",
         "behind", "behind on the left", "the left", "the front left")  # fmt: skip
MIN_ELEVATION_SPREAD_DEG = 15.0
DOUBTFUL_TRUST = 0.5  # as in the masks' refiner: below, a mask was replaced
MAX_DOUBTFUL_SHARE = 0.2


@dataclass(frozen=True)
class Quality:
    """What was found: `refusals` stop the run, `warnings` are shown with its result."""

    largest_gap_deg: float
    elevation_spread_deg: float
    warnings: Sequence[str]
    refusals: Sequence[str]


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


def assess(azimuth: Float64, elevation: Float64, trusts: Float64, config: MaskConfig) -> Quality:
    """Judge views by their directions (N,), degrees, and how far their masks can be trusted (N,), 0..1."""
    gap, middle = largest_gap(azimuth)
    spread = float(np.ptp(elevation))
    side = SIDES[round(middle / 45) % len(SIDES)]
    warnings, refusals = [], []
    if gap > config.refuse_gap_deg:
        refusals.append(
            f"all photos are from one side (within {360 - gap:.0f}°): no shape can be made of that; "
            "walk all the way round the object"
        )
    elif gap > config.warn_gap_deg:
        warnings.append(
            f"no views from {side} ({gap:.0f}° without a photo): that side will be guessed; walk all the way round"
        )
    if spread < MIN_ELEVATION_SPREAD_DEG:
        warnings.append(
            f"all photos are from one height (within {spread:.0f}°): top and undersides will be rough; "
            "add a round from higher up and one from lower down"
        )
    if len(azimuth) < GOOD_VIEWS:
        warnings.append(f"only {len(azimuth)} photos show the object: {GOOD_VIEWS} or more give a better model")
    doubtful = int(np.count_nonzero(trusts < DOUBTFUL_TRUST))
    if doubtful > MAX_DOUBTFUL_SHARE * len(trusts):
        warnings.append(
            f"in {doubtful} of {len(trusts)} photos the object was hard to tell from its background: look at "
            "contact_sheet.jpg; a plainer background of another colour helps"
        )
    return Quality(gap, spread, warnings, refusals)


def draw_coverage(path: Path, azimuth: Float64, elevation: Float64, trusts: Float64) -> None:
    """Draw from above where the cameras stood: the object in the middle, the front at the bottom, trust as colour."""
    figure = Figure(figsize=(5, 5), dpi=120)
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot(projection="polar")  # PolarAxes, which the stubs do not know
    axes.set_theta_zero_location("S")
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 30, 60, 90], labels=["90°", "60°", "30°", "0°"])  # elevation: straight above is the middle
    axes.set_xticks(np.radians(np.arange(0, 360, 45)), labels=["front", "", "right", "", "back", "", "left", ""])
    dots = axes.scatter(
        np.radians(azimuth), np.clip(90 - elevation, 0, 100), c=trusts, cmap="RdYlGn", vmin=0, vmax=1,
        edgecolors="black", linewidths=0.5,
    )  # fmt: skip
    figure.colorbar(dots, shrink=0.6, pad=0.1, label="trust in the mask")
    axes.set_title(f"{len(azimuth)} views, by direction and height")
    figure.savefig(path)

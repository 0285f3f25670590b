"""How well the model's size is known."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from scan2twin.frames import Dataset

SURFACE_ERROR_PIXELS = 0.5  # standard deviation of where a side of the object lies, in pixels of the optimised images
COVERAGE_FACTOR = 2  # standard deviations: about 95 %, as the GUM (JCGM 100:2008, section 6) wants it stated


def size_uncertainty(dataset: Dataset, size: float, optimised_side: int, poses: Mapping[str, Any]) -> float:
    """Return the expanded uncertainty (k = 2) of a length of about `size`, in the reference frame's unit.

    Two things add in squares: where the two sides of the object lie, half a pixel each at the object's distance, and
    the scale, which comes from the cameras' positions: `tracker_sigma_mm` of the metrics of refine_poses, averaged over
    the cameras. A tracker whose metre is wrong throughout cannot be found from its own poses: that is not covered.

    `optimised_side` is the side of the images that reconstruct optimised against, pixels.
    """
    unit_to_reference = np.array(dataset.unit_to_reference)
    scale = float(np.linalg.norm(unit_to_reference[:3, 0]))
    distances = np.array([np.linalg.norm(np.array(frame.camera_to_unit)[:3, 3]) for frame in dataset.frames]) * scale
    focal = np.median([frame.intrinsics.fx for frame in dataset.frames]) * optimised_side / dataset.resolution
    side = SURFACE_ERROR_PIXELS * float(np.median(distances)) / focal
    # A scale fitted to positions with an error of sigma along each axis: var = sigma² / Σ distance².
    sigma = float(poses.get("tracker_sigma_mm") or 0.0) / 1000
    scale_error = sigma / float(np.sqrt(np.square(distances).sum()))
    return float(COVERAGE_FACTOR * np.sqrt(2 * side**2 + (scale_error * size) ** 2))

"""What a phone's automatic exposure and white balance did from frame to frame, from points that several frames see.

A point that scatters light evenly looks alike from everywhere, so its linear colour in frame i is gain_i · albedo_j.
Logarithms make this a linear system with one unknown a frame and one a point (Kim and Pollefeys 2008, Robust
Radiometric Calibration and Vignetting Correction; here the response is known: sRGB).
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from preprocessing.bundle_adjustment import Tracks
from preprocessing.images import UInt8, read_image, srgb_to_linear
from preprocessing.parallel import map_frames
from scan2twin.progress import Progress

Array = NDArray[np.float64]

PATCH_SCALES = 2.0  # half side of a patch in scales of its feature: the blob that the feature was found on
MIN_OBSERVATIONS = 20  # of points shared with other frames; with fewer a frame has no gain
CUT_OFF = 250  # sRGB of 255, in any channel: light that brighter pixels may not have recorded in full
DARKEST_LIGHT = 0.007  # linear, 0 to 1 (sRGB 20 of 255): below, noise and stray light decide
HUBER = 1.345  # standard deviations beyond which a residual counts less: 95 % efficient for normal errors (Huber 1981)
# Prior standard deviation of a log gain: exposures within a capture differ by less than a stop. What depends on the
# view, like the light of a flash, disturbs a frame's points alike, so that all of a frame counts as one observation
# against the prior; else such errors add up from frame to frame round the object.
GAIN_SIGMA = 0.5
MAD_TO_SIGMA = 1.4826  # of a normal distribution
ITERATIONS = 20  # of reweighting; the weights then change by less than a thousandth

_LINEAR_OF_SRGB = srgb_to_linear(np.arange(256) / 255).astype(np.float32)
_BYTES_PER_PIXEL = (
    3 + 2 * 16 + 32
)  # 8 bits, linear light and whether it is cut off in float32 twice, their float64 sums


def gains_of_frames(tracks: Tracks, images: Sequence[Path], progress: Progress) -> Array:
    """Return each frame's gain on linear RGB (N, 3), by what `tracks` show in `images` (N files): `solve_gains`."""
    rows = range(len(images))

    def seen(row: int) -> Array:
        own = tracks.frame == row
        return patch_light(read_image(images[row]), tracks.xy[own], PATCH_SCALES * tracks.scale[own])

    height, width = read_image(images[0]).shape[:2]
    light = np.empty((len(tracks.frame), 3))
    patches = map_frames(seen, rows, progress, "comparing exposures", height * width * _BYTES_PER_PIXEL)
    for row, patch in zip(rows, patches, strict=True):
        light[tracks.frame == row] = patch
    return solve_gains(tracks.frame, tracks.point, light, len(images))


def patch_light(srgb: UInt8, xy: Array, half_side: Array) -> Array:
    """Return the mean linear light (K, 3) of square patches of an image (H, W, 3).

    Centres `xy` (K, 2) and half sides (K,) in pixels, the first pixel's centre at (0.5, 0.5); a patch is at least the
    pixel that it falls on, and what of it lies beyond the image does not count. NaN where a pixel of it is cut off.
    """
    height, width = srgb.shape[:2]
    cut_off = (srgb >= CUT_OFF).any(axis=2)
    sums = cv2.integral(np.dstack([_LINEAR_OF_SRGB[srgb], cut_off]), sdepth=cv2.CV_64F)
    size = np.array([width, height])
    low = np.clip(np.floor(xy - half_side[:, None] + 0.5).astype(int), 0, size - 1)
    high = np.clip(np.floor(xy + half_side[:, None] + 0.5).astype(int), low + 1, size)
    (left, top), (right, bottom) = low.T, high.T
    total = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    light = total[:, :3] / (high - low).prod(axis=1)[:, None]
    return np.where(total[:, 3:] > 0, np.nan, light)


def solve_gains(frame: NDArray[np.int64], point: NDArray[np.int64], light: Array, count: int) -> Array:
    """Return the gains (count, 3) that explain observations best, each channel's geometric mean 1.

    Observation k: frame[k] (0 to count - 1) sees point[k] with linear RGB light[k]; shapes (K,), (K,), (K, 3).
    Minimises Huber's loss of log light - log gain - log albedo, with a prior for gains near 1 (`GAIN_SIGMA`), by
    reweighted least squares. A frame with fewer than `MIN_OBSERVATIONS` usable ones has NaN. Frames that share no
    points, not even through others, cannot be compared: the mean of each such group is 1.
    """
    usable = (light > DARKEST_LIGHT).all(axis=1)  # not so if NaN
    before = -1
    while usable.sum() != before:  # frames that go leave points that only one frame sees, and those say nothing
        before = usable.sum()
        usable &= np.bincount(point[usable], minlength=point.max(initial=0) + 1)[point] >= 2
        usable &= (np.bincount(frame[usable], minlength=count) >= MIN_OBSERVATIONS)[frame]
    known = np.bincount(frame[usable], minlength=count) > 0
    gains = np.full((count, 3), np.nan)
    if known.any():
        rows = np.cumsum(known) - 1
        points = np.unique(point[usable], return_inverse=True)[1]
        for channel in range(3):
            log_light = np.log(light[usable, channel])
            gains[known, channel] = np.exp(_log_gains(rows[frame[usable]], points, log_light, int(known.sum())))
    return gains


def _log_gains(frame: NDArray[np.int64], point: NDArray[np.int64], log_light: Array, count: int) -> Array:
    """Solve one channel of `solve_gains`: log gains (count,), their mean 0."""
    weight, gain, sigma = np.ones(len(frame)), np.zeros(count), 0.0
    shape = (count, int(point.max()) + 1)
    for _ in range(ITERATIONS):
        # Normal equations with the points eliminated (Schur complement): as many unknowns as frames, few and dense.
        shared = csr_array((weight, (frame, point)), shape=shape)
        of_point = np.bincount(point, weight)
        mean_light = np.bincount(point, weight * log_light) / of_point
        through_points: Array = np.asarray(((shared / of_point) @ shared.T).toarray(), np.float64)
        of_frame = np.bincount(frame, weight, count)
        normal = np.diag((1 + (sigma / GAIN_SIGMA) ** 2) * of_frame) - through_points
        right = np.bincount(frame, weight * (log_light - mean_light[point]), minlength=count)
        # Without the prior only differences count: the solution of least norm has mean 0 in every group of frames.
        gain = np.asarray(np.linalg.lstsq(normal, right, rcond=1e-10)[0], np.float64)
        albedo = np.bincount(point, weight * (log_light - gain[frame])) / of_point
        residual = np.abs(log_light - gain[frame] - albedo[point])
        sigma = MAD_TO_SIGMA * float(np.median(residual))
        weight = np.minimum(1.0, HUBER * sigma / np.maximum(residual, 1e-12)) if sigma > 0 else weight
    return np.asarray(gain - gain.mean(), np.float64)

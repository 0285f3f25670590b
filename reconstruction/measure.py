"""How well renderings match photos, and pictures of it."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

PSNR_CEILING = 100.0  # dB, given for images that are equal to the bit


@dataclass(frozen=True)
class ViewFigures:
    """Figures of one view.

    psnr, dB: whole square image, photo and rendering both premultiplied by their own coverage (on black).
    psnr_foreground, dB: over pixels whose mask is at least one half. mask_iou: overlap of coverage and mask.
    """

    psnr: float
    psnr_foreground: float
    mask_iou: float


def psnr(mean_square_error: float) -> float:
    """Return the peak signal-to-noise ratio in dB for values in [0, 1]."""
    return float(min(-10 * np.log10(max(mean_square_error, 1e-12)), PSNR_CEILING))


def measure_view(rendering: torch.Tensor, photo: torch.Tensor) -> ViewFigures:
    """Compare a rendering with a photo, both (R, R, 4) premultiplied sRGB and coverage in [0, 1]."""
    foreground, covered = photo[..., 3] >= 0.5, rendering[..., 3] >= 0.5
    error = (rendering[..., :3].clamp(0, 1) - photo[..., :3]).square()
    overlap = (foreground & covered).sum() / (foreground | covered).sum().clamp(min=1)
    return ViewFigures(psnr(float(error.mean())), psnr(float(error[foreground].mean())), float(overlap))


def comparison_picture(rendering: torch.Tensor, photo: torch.Tensor) -> NDArray[np.uint8]:
    """Return photo | rendering | error ×4 side by side as (R, 3R, 3) uint8 RGB, top row first."""
    error = (rendering - photo)[..., :3].abs() * 4
    row = torch.cat([photo[..., :3], rendering[..., :3], error], dim=1).flip(0).clamp(0, 1)
    return np.asarray((row * 255).round().byte().numpy())


def standouts(values: NDArray[np.float64], spread: float = 4.0) -> NDArray[np.intp]:
    """Return the places of values that stand out above the rest, by median and median absolute deviation.

    `spread` counts robust standard deviations (1.4826 MAD, Hampel 1974); a fifth of the median is the least step, so
    that a set of nearly equal values has no standouts.
    """
    median = np.median(values)
    deviation = 1.4826 * np.median(np.abs(values - median))
    return np.flatnonzero(values > median + max(spread * deviation, 0.2 * median))

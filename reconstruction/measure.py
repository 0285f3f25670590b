"""How well renderings match photos, and pictures of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

PSNR_CEILING = 100.0  # dB, given for images that are equal to the bit
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # pixels (Wang et al. 2004, section III-B)
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # for values in [0, 1]


@dataclass(frozen=True)
class ViewFigures:
    """Figures of one view.

    psnr, dB: whole square image, photo and rendering both premultiplied by their own coverage (on black).
    psnr_foreground, dB: over pixels whose mask is at least one half. ssim: see `ssim`. mask_iou: overlap of coverage
    and mask.
    """

    psnr: float
    psnr_foreground: float
    ssim: float
    mask_iou: float


def mean_figures(views: Sequence[ViewFigures]) -> dict[str, float | None]:
    """Return the mean of each figure over the views, rounded to four decimals; None where there are no views."""
    names = ViewFigures.__annotations__
    return {name: round(float(np.mean([asdict(v)[name] for v in views])), 4) if views else None for name in names}


def psnr(mean_square_error: float) -> float:
    """Return the peak signal-to-noise ratio in dB for values in [0, 1]."""
    return float(min(-10 * np.log10(max(mean_square_error, 1e-12)), PSNR_CEILING))


def measure_view(rendering: torch.Tensor, photo: torch.Tensor) -> ViewFigures:
    """Compare a rendering with a photo, both (R, R, 4) premultiplied sRGB and coverage in [0, 1]."""
    foreground, covered = photo[..., 3] >= 0.5, rendering[..., 3] >= 0.5
    error = (rendering[..., :3].clamp(0, 1) - photo[..., :3]).square()
    overlap = (foreground & covered).sum() / (foreground | covered).sum().clamp(min=1)
    return ViewFigures(
        psnr(float(error.mean())),
        psnr(float(error[foreground].mean())),
        ssim(rendering[..., :3].clamp(0, 1), photo[..., :3]),
        float(overlap),
    )


def ssim(image: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the structural similarity of two images (H, W, C) in [0, 1]: 1 when equal.

    Wang et al. 2004, *Image Quality Assessment: From Error Visibility to Structural Similarity*, eq. 13, in Gaussian
    windows that lie wholly in the image (smaller ones if it is smaller); the mean over windows and channels.
    """
    side = min(SSIM_WINDOW, *(length - 1 + length % 2 for length in image.shape[:2]))  # odd
    kernel = cv2.getGaussianKernel(side, SSIM_SIGMA)
    x, y = (np.asarray(values.cpu(), np.float64) for values in (image, reference))

    def windowed(values: NDArray[np.float64]) -> NDArray[np.float64]:
        # Not a convolution by torch, which takes ten times as long on a single channel.
        height, width = (length - side + 1 for length in values.shape[:2])
        before = side // 2
        filtered: NDArray[np.float64] = cv2.sepFilter2D(values, -1, kernel, kernel)
        return filtered[before : before + height, before : before + width]

    mean_x, mean_y = windowed(x), windowed(y)
    variance_x, variance_y = windowed(x * x) - mean_x**2, windowed(y * y) - mean_y**2
    covariance = windowed(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_x + variance_y + SSIM_C2)
    return float((luminance * structure).mean())


def comparison_picture(rendering: torch.Tensor, photo: torch.Tensor) -> NDArray[np.uint8]:
    """Return photo | rendering | error ×4 side by side as (R, 3R, 3) uint8 RGB, top row first."""
    error = (rendering - photo)[..., :3].abs() * 4
    row = torch.cat([photo[..., :3], rendering[..., :3], error], dim=1).flip(0).clamp(0, 1)
    return np.asarray((row * 255).round().byte().cpu().numpy())


def standouts(values: NDArray[np.float64], spread: float = 4.0) -> NDArray[np.intp]:
    """Return the places of values that stand out above the rest, by median and median absolute deviation.

    `spread` counts robust standard deviations (1.4826 MAD, Hampel 1974); a fifth of the median is the least step, so
    that a set of nearly equal values has no standouts.
    """
    median = np.median(values)
    deviation = 1.4826 * np.median(np.abs(values - median))
    return np.flatnonzero(values > median + max(spread * deviation, 0.2 * median))

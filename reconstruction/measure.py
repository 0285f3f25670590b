"""How well renderings match photos, and pictures of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import conv2d

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
    side = min(SSIM_WINDOW, *image.shape[:2])
    offset = torch.arange(side, dtype=image.dtype, device=image.device) - (side - 1) / 2
    kernel = torch.exp(-offset.square() / (2 * SSIM_SIGMA**2))
    kernel = kernel / kernel.sum()
    x, y = image.permute(2, 0, 1), reference.permute(2, 0, 1)
    moments = torch.cat([x, y, x * x, y * y, x * y])[:, None]
    moments = conv2d(conv2d(moments, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    mean_x, mean_y, square_x, square_y, product = moments.view(5, -1, *moments.shape[2:])
    variance_x, variance_y = square_x - mean_x**2, square_y - mean_y**2
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * (product - mean_x * mean_y) + SSIM_C2) / (variance_x + variance_y + SSIM_C2)
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

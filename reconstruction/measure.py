"""How well renderings match photos, and pictures of it."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from reconstruction.view_renderer import SRGB_OFFSET, SRGB_POWER, expose

PSNR_CEILING = 100.0  # dB, given for images that are equal to the bit


@dataclass(frozen=True)
class ViewFigures:
    """Figures of one view; PSNR in dB, images sRGB in [0, 1].

    psnr: whole square image, photo and rendering both premultiplied by their own coverage (on black). psnr_foreground:
    over pixels whose mask is at least one half. The *_gain figures multiply the rendering's linear RGB by the
    per-channel gain that fits the photo's foreground best, since a held-out photo's exposure is not known.
    """

    psnr: float
    psnr_foreground: float
    psnr_gain: float
    psnr_foreground_gain: float
    mask_iou: float
    gain: tuple[float, float, float]


def psnr(mean_square_error: float) -> float:
    """Return the peak signal-to-noise ratio in dB for values in [0, 1]."""
    return float(min(-10 * np.log10(max(mean_square_error, 1e-12)), PSNR_CEILING))


def fit_gain(rendering: torch.Tensor, photo: torch.Tensor) -> torch.Tensor:
    """Return the gain (3,) on linear light that brings `rendering` closest to `photo`, both sRGB (N, 3).

    On encoded values a gain acts as `expose` says, which is linear in gain^(1/2.4): least squares in closed form.
    """
    rendering, photo = rendering + SRGB_OFFSET, photo + SRGB_OFFSET
    scale = (rendering * photo).sum(0) / rendering.square().sum(0).clamp(min=1e-6)
    return torch.clamp(scale**SRGB_POWER, 0.25, 4.0) if len(photo) else torch.ones(3)


def apply_gain(rgba: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Multiply the linear light of a premultiplied sRGB image (..., 4) by `gain` (3,); coverage stays."""
    coverage = rgba[..., 3:]
    straight = (rgba[..., :3] / coverage.clamp(min=1e-3)).clamp(0, 1)
    return torch.cat([expose(straight, gain).clamp(0, 1) * coverage, coverage], dim=-1)


def measure_view(rendering: torch.Tensor, photo: torch.Tensor) -> ViewFigures:
    """Compare a rendering with a photo, both (R, R, 4) premultiplied sRGB and coverage in [0, 1]."""
    foreground = photo[..., 3] >= 0.5
    covered = rendering[..., 3] >= 0.5
    both = foreground & covered
    gain = fit_gain(rendering[both][:, :3], photo[both][:, :3])
    with_gain = apply_gain(rendering, gain)

    def error(image: torch.Tensor) -> torch.Tensor:
        return (image[..., :3] - photo[..., :3]).square()

    return ViewFigures(
        psnr(float(error(rendering).mean())),
        psnr(float(error(rendering)[foreground].mean())),
        psnr(float(error(with_gain).mean())),
        psnr(float(error(with_gain)[foreground].mean())),
        float(both.sum() / (foreground | covered).sum().clamp(min=1)),
        (float(gain[0]), float(gain[1]), float(gain[2])),
    )


def comparison_picture(rendering: torch.Tensor, photo: torch.Tensor, gain: tuple[float, ...]) -> NDArray[np.uint8]:
    """Return photo | rendering | error ×4 side by side as (R, 3R, 3) uint8 RGB, top row first."""
    rendering = apply_gain(rendering, torch.tensor(gain))
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

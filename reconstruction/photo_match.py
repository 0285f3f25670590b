"""How a rendering matches its photo: the loss of an iteration and its figures, in one pass on the CPU."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

WEIGHT_MASK = 1.0
COVERED = 0.5  # coverage from which a pixel is the object's

_ONE, _THIRD, _BYTE = np.float32(1), np.float32(1 / 3), np.float32(1 / 255)


class Match(NamedTuple):
    """A rendering beside its photo.

    fit: the loss, a scalar with gradients to the rendering; see `match`. squared_error: mean over the window's pixels
    and colours, both on black. seen: mean of the photo's mask. drawn, photographed (3,): mean sRGB over the pixels that
    both cover; None where there are none.
    """

    fit: Tensor
    squared_error: float
    seen: float
    drawn: Tensor | None
    photographed: Tensor | None


def match(image: Tensor, photo: Tensor, counts: Tensor, background: Tensor, window: tuple[slice, slice]) -> Match:
    """Compare a rendering (R, R, 4) with a photo (R, R, 4) uint8, both premultiplied sRGB and coverage.

    The loss is the mean over all pixels of how much each `counts` ((R, R) uint8, 255 = in full) times the sum of the
    mean absolute difference of the colours on one `background` (3,) and the squared difference of the coverage. Colours
    on the outline so count by their coverage.
    """
    if image.device.type != "cpu":
        return match_torch(image, photo, counts, background, window)
    rows, columns = (part.indices(image.shape[0]) for part in window)
    fit, sums = _Match.apply(image.contiguous(), photo, counts, background, (*rows[:2], *columns[:2]))  # type: ignore[no-untyped-call]
    squared, seen, both, *means = sums
    drawn, photographed = (torch.tensor(part) / both for part in (means[:3], means[3:])) if both else (None, None)
    pixels = max((rows[1] - rows[0]) * (columns[1] - columns[0]), 1)
    return Match(fit, squared / (3 * pixels), seen / image.shape[0] ** 2, drawn, photographed)


def match_torch(image: Tensor, photo: Tensor, counts: Tensor, background: Tensor, window: tuple[slice, slice]) -> Match:
    """Return what `match` does, by torch operations alone: for any device and precision."""
    target = photo.to(image.dtype) / 255
    difference = image - target
    color = difference[..., :3] - background * difference[..., 3:]
    error = color.abs().mean(dim=2) + WEIGHT_MASK * difference[..., 3].square()
    shown = image.detach()
    both = (shown[..., 3] >= COVERED) & (target[..., 3] >= COVERED)
    means = [part[both][:, :3].mean(dim=0) for part in (shown, target)] if both.any() else [None, None]
    squared = float(difference.detach()[window][..., :3].square().mean())
    return Match((counts.to(image.dtype) / 255 * error).mean(), squared, float(target[..., 3].mean()), *means)


@njit(cache=True, nogil=True)
def _compare(image, photo, counts, background, window, d_image, sums):  # type: ignore[no-untyped-def]
    """Return the loss; write its derivative by `image` and the sums that `Match` is made of."""
    height, width = counts.shape
    share = _ONE / np.float32(height * width)
    total = 0.0
    for j in range(height):
        for i in range(width):
            coverage = np.float32(photo[j, i, 3]) * _BYTE
            weight = np.float32(counts[j, i]) * _BYTE * share
            apart = image[j, i, 3] - coverage
            covered = image[j, i, 3] >= COVERED and photo[j, i, 3] >= 128
            inside = window[0] <= j < window[1] and window[2] <= i < window[3]
            error, by_coverage = np.float32(WEIGHT_MASK) * apart * apart, np.float32(2 * WEIGHT_MASK) * apart
            for c in range(3):
                color = np.float32(photo[j, i, c]) * _BYTE
                difference = image[j, i, c] - color
                if inside:
                    sums[0] += difference * difference
                if covered:
                    sums[3 + c] += image[j, i, c]
                    sums[6 + c] += color
                difference -= background[c] * apart
                sign = np.float32(difference > 0) - np.float32(difference < 0)
                error += abs(difference) * _THIRD
                by_coverage -= sign * background[c] * _THIRD
                d_image[j, i, c] = weight * sign * _THIRD
            d_image[j, i, 3] = weight * by_coverage
            total += weight * error
            sums[1] += coverage
            sums[2] += covered
    return total


class _Match(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, photo: Tensor, counts: Tensor, background: Tensor, window: tuple[int, int, int, int]
    ) -> tuple[Tensor, list[float]]:
        d_image, sums = torch.empty_like(image), np.zeros(9)
        arrays = (tensor.detach().numpy() for tensor in (image, photo, counts, background))
        fit = _compare(*arrays, window, d_image.numpy(), sums)
        ctx.save_for_backward(d_image)
        return image.new_tensor(fit), sums.tolist()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (d_image,) = ctx.saved_tensors
        return d_image * grads[0], None, None, None, None

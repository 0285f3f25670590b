"""Transfer between linear light and the sRGB encoding that photos and textures are stored in."""

import torch

Tensor = torch.Tensor


def linear_to_srgb(linear: Tensor) -> Tensor:
    """Encode linear light as sRGB (IEC 61966-2-1, section 5.2), any shape; 0 maps to 0 and 1 to 1.

    The gradient at and below 0 is that of the linear piece, never infinite.
    """
    power = linear.clamp_min(0.0031308)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * power ** (1 / 2.4) - 0.055)


def srgb_to_linear(srgb: Tensor) -> Tensor:
    """Decode sRGB values in [0, 1] to linear light, the inverse of `linear_to_srgb`, any shape."""
    power = srgb.clamp_min(0.04045)
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((power + 0.055) / 1.055) ** 2.4)

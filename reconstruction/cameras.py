"""Cameras as the rasteriser wants them: one 4×4 matrix from the unit frame to OpenGL clip space."""

import numpy as np
import torch
from numpy.typing import NDArray

from scan2twin.capture.models import Intrinsics

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

NEAR, FAR = 0.02, 50.0  # clip planes, unit-frame lengths; the object's longest side is 1


def clip_from_camera(
    intrinsics: Intrinsics, width: float, height: float, near: float = NEAR, far: float = FAR
) -> Float64Array:
    """Return the 4×4 projection (OpenGL camera axes to clip space, acting on column vectors).

    Clip space is OpenGL's: x right, y up, w the depth along -Z, z/w in [-1, 1]. Pixel (u, v) of the image
    (origin top-left, v down) is x/w = 2u/width - 1, y/w = 1 - 2v/height, so the principal point is honoured.
    Hartley and Zisserman 2004, eq. 6.9, with the axes of OpenGL 4.6 §13.8.
    """
    return np.array(
        [
            [2 * intrinsics.fx / width, 0, 1 - 2 * intrinsics.cx / width, 0],
            [0, 2 * intrinsics.fy / height, 2 * intrinsics.cy / height - 1, 0],
            [0, 0, -(far + near) / (far - near), -2 * far * near / (far - near)],
            [0, 0, -1, 0],
        ]
    )


def inverse_rigid(transform: Float64Array) -> Float64Array:
    """Return the inverse of rigid 4×4 transforms (..., 4, 4)."""
    inverse = np.zeros_like(transform)
    rotation_t = np.swapaxes(transform[..., :3, :3], -1, -2)
    inverse[..., :3, :3] = rotation_t
    inverse[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation_t, transform[..., :3, 3])
    inverse[..., 3, 3] = 1
    return inverse


def se3_exp(twist: torch.Tensor) -> torch.Tensor:
    """Return the rigid 4×4 transforms (B, 4, 4) of twists (B, 6) = (rotation vector, radians; translation).

    Rodrigues' formula for the rotation; the translation is taken as it is (not coupled by the left Jacobian),
    which for the small corrections of camera refinement is an equally good chart and keeps metres readable.
    """
    omega, translation = twist[:, :3], twist[:, 3:]
    zero = torch.zeros_like(omega[:, 0])
    x, y, z = omega.unbind(-1)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).view(-1, 3, 3)
    angle2 = (omega * omega).sum(-1)[:, None, None]
    # Series near zero, where sin(a)/a is 0/0; the square root stays clear of zero for its gradient.
    angle = torch.sqrt(torch.clamp(angle2, min=1e-8))
    small = angle2 < 1e-8
    a = torch.where(small, 1 - angle2 / 6, torch.sin(angle) / angle)
    b = torch.where(small, 0.5 - angle2 / 24, (1 - torch.cos(angle)) / (angle * angle))
    rotation = torch.eye(3, dtype=twist.dtype, device=twist.device) + a * cross + b * (cross @ cross)
    top = torch.cat([rotation, translation[:, :, None]], dim=2)
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=twist.dtype, device=twist.device).expand(len(twist), 1, 4)
    return torch.cat([top, bottom], dim=1)


def to_clip(points: torch.Tensor, clip_from_unit: torch.Tensor) -> torch.Tensor:
    """Project points (V, 3) in the unit frame with matrices (B, 4, 4) to clip positions (B, V, 4)."""
    return points @ clip_from_unit[:, :, :3].transpose(1, 2) + clip_from_unit[:, None, :, 3]

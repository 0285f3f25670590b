"""Screen-space derivatives of interpolated attributes, for choosing mip levels; the same for every back end."""

import torch
from torch import Tensor

_CHUNK = 262_144  # pixels worked on at once: bounds the memory of the intermediate tensors


def attribute_derivatives(attributes: Tensor, rast: Tensor, clip_positions: Tensor, triangles: Tensor) -> Tensor:
    """Differentiate interpolated attributes by pixel position.

    Args:
        attributes: (B or 1, V, C) vertex attributes.
        rast: (B, H, W, 4) from `Rasterizer.rasterize`.
        clip_positions: (B, V, 4) what `rast` was made from.
        triangles: (T, 3) vertex indices.

    Returns:
        (B, H, W, 2 C): (d a_0/dx, d a_0/dy, d a_1/dx, ...) a pixel, y up; zero where nothing is seen. No gradients.

    """
    batch, height, width, _ = rast.shape
    out = rast.new_zeros(batch, height, width, 2 * attributes.shape[2])
    for seen in torch.split(torch.nonzero(rast[..., 3]), _CHUNK):
        image, row, column = seen.unbind(1)
        out[image, row, column] = pixel_derivatives(attributes, rast, clip_positions, triangles, image, row, column)
    return out


@torch.no_grad()
def pixel_derivatives(
    attributes: Tensor,
    rast: Tensor,
    clip_positions: Tensor,
    triangles: Tensor,
    image: Tensor,
    row: Tensor,
    column: Tensor,
) -> Tensor:
    """Return the derivatives (N, 2 C) at N pixels that see something, given by image, row and column (N,) each."""
    _, height, width, _ = rast.shape
    corners = triangles[rast[image, row, column, 3].long() - 1].long()
    clip = clip_positions[image[:, None], corners]  # (N, 3 corners, 4)
    x, y, w = clip[..., 0], clip[..., 1], clip[..., 3]
    fx = (column + 0.5) * (2 / width) - 1
    fy = (row + 0.5) * (2 / height) - 1
    x, y = x - fx[:, None] * w, y - fy[:, None] * w
    # Edge function a_i = p_j x p_k with (i, j, k) cyclic, p relative to the pixel, and its derivatives by NDC x and y.
    j, k = [1, 2, 0], [2, 0, 1]
    a = x[:, j] * y[:, k] - y[:, j] * x[:, k]
    a_x = y[:, j] * w[:, k] - w[:, j] * y[:, k]
    a_y = w[:, j] * x[:, k] - x[:, j] * w[:, k]
    total = a.sum(dim=1, keepdim=True)
    weight = a / total
    weight_x = (a_x - weight * a_x.sum(dim=1, keepdim=True)) / total * (2 / width)
    weight_y = (a_y - weight * a_y.sum(dim=1, keepdim=True)) / total * (2 / height)
    values = attributes[image[:, None] if attributes.shape[0] > 1 else 0, corners]  # (N, 3, C)
    by_pixel = torch.stack((weight_x, weight_y), dim=1) @ values  # (N, 2, C)
    return by_pixel.transpose(1, 2).flatten(1)

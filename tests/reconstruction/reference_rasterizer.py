"""Slow float64 references of the rasteriser's operations, written to be read, in pure torch and numpy.

Gradients of these are torch's own, so they check the kernels' hand-written ones.
"""

import numpy as np
import torch
from torch import Tensor


def pixel_centres(height: int, width: int) -> tuple[Tensor, Tensor]:
    """NDC coordinates (H, W) of pixel centres; row 0 is the bottom."""
    y = (torch.arange(height, dtype=torch.float64) + 0.5) * 2 / height - 1
    x = (torch.arange(width, dtype=torch.float64) + 0.5) * 2 / width - 1
    return torch.meshgrid(x, y, indexing="xy")


def barycentrics(corners: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Solve p_0 b_0 + p_1 b_1 + p_2 b_2 ~ (x, y, 1) for clip-space corners (..., 3, 4); weights (..., 3), sum 1.

    NaN where the line of sight lies in the triangle's plane; w = sum b w <= 0 means behind the eye.
    """
    matrix = corners[..., [0, 1, 3]].transpose(-1, -2)
    rays = torch.stack((x, y, torch.ones_like(x)), dim=-1)
    weights = (torch.linalg.inv_ex(matrix).inverse @ rays[..., None])[..., 0]
    return weights / weights.sum(dim=-1, keepdim=True)


def rasterize(clip: Tensor, triangles: Tensor, height: int, width: int) -> Tensor:
    """`rasterize` for one view: clip (V, 4) float64, triangles (T, 3) -> (H, W, 4) float64."""
    x, y = pixel_centres(height, width)
    corners = clip[triangles.long()]  # (T, 3, 4)
    weights = barycentrics(corners[:, None], x.reshape(-1), y.reshape(-1))  # (T, pixels, 3)
    z, w = (weights @ corners[:, :, 2:3])[..., 0], (weights @ corners[:, :, 3:4])[..., 0]
    depth = z / w
    seen = (weights >= 0).all(-1) & (w > 0) & (depth.abs() <= 1)
    nearest, index = torch.where(seen, depth, torch.inf).min(dim=0)
    found = weights[index, torch.arange(len(index))]
    rast = torch.stack((found[:, 0], found[:, 1], nearest, index + 1.0), dim=-1)
    return torch.where(torch.isfinite(nearest)[:, None], rast, 0.0).reshape(height, width, 4)


def interpolate(clip: Tensor, triangles: Tensor, attributes: Tensor, ids: Tensor) -> Tensor:
    """Interpolate attributes (V, C) at pixels whose triangle index + 1 is `ids` (H, W); differentiable in `clip`."""
    x, y = pixel_centres(*ids.shape)
    rows, columns = torch.nonzero(ids, as_tuple=True)
    seen = triangles[ids[rows, columns].long() - 1].long()
    weights = barycentrics(clip[seen], x[rows, columns], y[rows, columns])
    values = (weights[:, None] @ attributes[seen])[:, 0]
    return torch.zeros(*ids.shape, attributes.shape[1], dtype=torch.float64).index_put((rows, columns), values)


def coverage(clip: Tensor, triangles: Tensor, height: int, width: int, samples: int, rasterize_ids) -> Tensor:
    """Share (H, W) of each pixel that anything covers, from `samples`² samples a pixel."""
    ids = rasterize_ids(clip[None], triangles, (height * samples, width * samples))[0, ..., 3]
    return (ids > 0).double().reshape(height, samples, width, samples).mean(dim=(1, 3))


def bilinear(texture: Tensor, s: Tensor, t: Tensor, wrap: bool) -> Tensor:
    """Sample (H, W, C) at (N,) positions, texel centres at (i + 1/2) / size."""
    height, width, _ = texture.shape
    x, y = s * width - 0.5, t * height - 0.5
    column, row = torch.floor(x).detach(), torch.floor(y).detach()
    out = torch.zeros(len(s), texture.shape[2], dtype=torch.float64)
    for dr in (0, 1):
        for dc in (0, 1):
            r, c = (row + dr).long(), (column + dc).long()
            r = r % height if wrap else r.clamp(0, height - 1)
            c = c % width if wrap else c.clamp(0, width - 1)
            weight = (1 - (y - (row + dr)).abs()) * (1 - (x - (column + dc)).abs())
            out = out + weight[:, None] * texture[r, c]
    return out


def perspective(fov_degrees: float, near: float = 0.1, far: float = 10.0) -> np.ndarray:
    """OpenGL projection matrix: camera space (looking along -z) to clip space."""
    f = 1 / np.tan(np.radians(fov_degrees) / 2)
    depth, offset = -(far + near) / (far - near), -2 * far * near / (far - near)
    return np.array([[f, 0, 0, 0], [0, f, 0, 0], [0, 0, depth, offset], [0, 0, -1, 0]])


def orbit(azimuth_degrees: float, elevation_degrees: float, distance: float) -> np.ndarray:
    """World-to-camera matrix (OpenGL axes) of a camera that looks at the origin, y up."""
    azimuth, elevation = np.radians([azimuth_degrees, elevation_degrees])
    back = np.array([np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)])
    right = np.cross([0, 1, 0], back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack((right, np.cross(back, right), back))
    matrix[:3, 3] = -matrix[:3, :3] @ (back * distance)
    return matrix


def to_clip(vertices: Tensor, matrix: np.ndarray) -> Tensor:
    """World-space vertices (V, 3) to clip space (V, 4) in the vertices' dtype."""
    homogeneous = torch.cat((vertices, torch.ones_like(vertices[:, :1])), dim=1)
    return homogeneous @ torch.as_tensor(matrix, dtype=vertices.dtype).T

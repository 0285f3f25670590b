"""How true a model's base colour is, where the true one is known.

Photos show albedo times light, so albedo is known up to one factor a channel: the best one is taken first.
"""

import numpy as np
import numpy.typing as npt
import torch
import trimesh

from reconstruction.atlas import UvMesh
from reconstruction.closest_point import TriangleTree
from reconstruction.color import linear_to_srgb, srgb_to_linear
from reconstruction.lods import sample
from reconstruction.measure import psnr
from reconstruction.model import Image

Floats = npt.NDArray[np.float64]

FARTHEST = 0.02  # of the true surface's diagonal; beyond, the model has no surface there to compare


def albedo_psnr(mesh: UvMesh, base_color: Image, points: Floats, albedo: Floats) -> float:
    """Compare a model's base colour with the true albedo; dB over sRGB values, after one factor a channel.

    Args:
        mesh: the model.
        base_color: (S, S, 3) sRGB.
        points: (N, 3) on the true surface, in the model's frame; those without a model near them are left out.
        albedo: (N, 3) linear, at the points.

    """
    closest = TriangleTree(mesh.vertices, mesh.faces).query(points)
    near = closest.distance <= FARTHEST * np.linalg.norm(np.ptp(points, axis=0))
    found = _linear(sample(base_color, closest.interpolate(mesh.uv, mesh.faces)))[near]
    return scaled_psnr(found, albedo[near])


def scaled_psnr(found: Floats, truth: Floats) -> float:
    """Return the PSNR, dB over sRGB values, of linear colours (N, 3) times the factor a channel that fits best."""
    factor = (found * truth).sum(axis=0) / np.maximum((found**2).sum(axis=0), 1e-12)
    difference = _srgb(found * factor) - _srgb(truth)
    return psnr(float((difference**2).mean()))


def textured_points(
    vertices: Floats, faces: npt.NDArray[np.integer], uv: Floats, texture: Image, count: int
) -> tuple[Floats, Floats]:
    """Draw points (count, 3) evenly from a textured mesh, and its linear colours there (count, 3).

    uv (V, 2) has its origin at the texture's top left.
    """
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    points, face = trimesh.sample.sample_surface(mesh, count, seed=0)
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[face], points)
    return np.asarray(points), _linear(sample(texture, np.einsum("nk,nkc->nc", weights, uv[faces[face]])))


def _linear(srgb: Floats) -> Floats:
    return np.asarray(srgb_to_linear(torch.from_numpy(srgb)).numpy(), np.float64)


def _srgb(linear: Floats) -> Floats:
    return np.asarray(linear_to_srgb(torch.from_numpy(linear).clamp(0, 1)).numpy(), np.float64)

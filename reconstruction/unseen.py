"""Surface that no training photo shows, such as the underside of a thing on a table.

The field is unconstrained there and gives noise. Such surface gets the smoothest continuation of the colours
round it instead: the harmonic interpolation over the mesh (Zhu, Ghahramani and Lafferty 2003).
"""

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import splu

from reconstruction.atlas import UvMesh
from reconstruction.bake import CPU, dilate, rasterize_atlas
from reconstruction.cameras import to_clip
from reconstruction.data import Views
from reconstruction.rasterizer import get_rasterizer

Tensor = torch.Tensor
Bools = npt.NDArray[np.bool_]

GRAZING = 0.2  # cosine to the viewing direction below which a photo says little of a surface's colour
PULL_TO_MEAN = 1e-6  # settles parts of the surface that no seen part is connected to


def seen_faces(mesh: UvMesh, views: Views) -> Bools:
    """Tell which faces (F,) at least one view shows, other than at a grazing angle."""
    rasterizer = get_rasterizer("numba", CPU)
    vertices, faces = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces)
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
    middles = corners.mean(axis=1)
    seen = np.zeros(len(mesh.faces), bool)
    for clip_from_camera, camera_from_unit, center in zip(
        views.clip_from_camera, views.camera_from_unit, views.centers(), strict=True
    ):
        clip = to_clip(vertices, (clip_from_camera @ camera_from_unit)[None])
        rast = rasterizer.rasterize(clip, faces, (views.resolution, views.resolution))
        shown = np.unique(rast[..., 3].numpy().astype(np.int64))
        shown = shown[shown > 0] - 1
        towards = center - middles[shown]
        cosine = (normals[shown] * towards).sum(axis=1) / np.linalg.norm(towards, axis=1)
        seen[shown[cosine > GRAZING]] = True
    return seen


def fill_unseen(texture: Tensor, mesh: UvMesh, seen: Bools) -> Tensor:
    """Continue a texture (S, S, C) smoothly over the faces that are not `seen` (F,); other texels stay."""
    welded, _, faces = mesh.welded()
    known = np.zeros(len(welded), bool)
    known[faces[seen]] = True
    if known.all() or not known.any():
        return texture
    rasterizer = get_rasterizer("numba", CPU)
    at_vertices = rasterizer.texture(
        texture[None], torch.from_numpy(mesh.uv)[None, None], filter_mode="linear", boundary_mode="clamp"
    )[0, 0].numpy()
    # A vertex on a seam has several places in the texture; the last of them stands for all.
    copies = np.zeros(len(mesh.vertices), np.int64)
    copies[mesh.faces] = faces
    colors = np.zeros((len(welded), texture.shape[2]))
    colors[copies] = at_vertices

    colors[~known] = harmonic(faces, known, colors)
    attributes = np.concatenate([known[:, None], colors], axis=1).astype(np.float32)[copies]
    rast = rasterize_atlas(mesh, texture.shape[0])
    smooth = rasterizer.interpolate(torch.from_numpy(attributes)[None], rast, torch.from_numpy(mesh.faces))[0]
    smooth = dilate(smooth, rast[0, ..., 3] > 0)  # texels at a chart's rim may be reached off their centre only
    trust = smooth[..., :1]
    return trust * texture + (1 - trust) * smooth[..., 1:]


def harmonic(faces: npt.NDArray[np.int32], known: Bools, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return values (U, C) of the vertices that are not `known` (V,): each the mean of its neighbours'.

    `values` (V, C) are read where known; a part of the mesh with no known vertex gets their mean.
    """
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    size = len(known)
    joined = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(size, size)).tocsr()
    adjacency = ((joined + joined.T) > 0).astype(np.float64).tocsr()
    to_unknown = adjacency[~known]
    mean = values[known].mean(axis=0)
    system = diags_array(to_unknown.sum(axis=1) + PULL_TO_MEAN) - to_unknown[:, ~known]
    offset = splu(system.tocsc()).solve(to_unknown[:, known] @ (values[known] - mean))
    return np.asarray(mean + offset)

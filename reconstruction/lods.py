"""Levels of detail: the model with fewer triangles and smaller textures.

Quadric decimation of the closed surface loses the UVs, so the smaller mesh is unwrapped anew and each of its texels
asks the closest point of the full model for its value. Only the full model is needed, not the photos.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.ndimage import map_coordinates

from reconstruction.atlas import UvMesh, decimate, unwrap, vertex_tangents
from reconstruction.bake import CPU, dilate, rasterize_atlas, to_8bit
from reconstruction.closest_point import TriangleTree
from reconstruction.model import Material, TexturedModel
from reconstruction.rasterizer import get_rasterizer

Floats = npt.NDArray[np.float64]
Texture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Level:
    """What a kind of viewer can take."""

    max_triangles: int
    texture_size: int  # side, texels


LEVELS = {
    "web": Level(20_000, 1024),  # loads in seconds on a phone
    "ar": Level(100_000, 2048),  # Apple's advice for AR Quick Look
}


def level_of_detail(model: TexturedModel, level: Level) -> TexturedModel:
    """Return `model` within the limits of `level`; what is within them stays as it is."""
    if len(model.mesh.faces) <= level.max_triangles:
        return replace(model, material=shrink(model.material, level.texture_size))
    vertices, _, faces = model.mesh.welded()
    size = min(level.texture_size, len(model.material.base_color))
    mesh = unwrap(*decimate(vertices, faces, level.max_triangles), size)
    return replace(model, mesh=mesh, material=transfer(model, mesh, size))


def shrink(material: Material, size: int) -> Material:
    """Return `material` with textures of at most `size` texels a side, each the mean of those it stands for."""

    def smaller(texture: Texture | None) -> Texture | None:
        if texture is None or len(texture) <= size:
            return texture
        return np.array(Image.fromarray(texture).resize((size, size), Image.Resampling.BOX))

    textures = {name: smaller(texture) for name, texture in _textures(material).items()}
    return replace(material, **textures)  # type: ignore[arg-type]


def transfer(model: TexturedModel, mesh: UvMesh, size: int) -> Material:
    """Return `model`'s material over the atlas of `mesh`, another mesh of nearly the same surface, same frame."""
    rast = rasterize_atlas(mesh, size)
    covered = rast[0, ..., 3] > 0
    faces = torch.from_numpy(mesh.faces)

    def over_atlas(values: npt.NDArray[np.float32]) -> Floats:
        spread = get_rasterizer("numba", CPU).interpolate(torch.from_numpy(values)[None], rast, faces)
        return spread[0][covered].double().numpy()

    full = model.mesh
    found = TriangleTree(full.vertices, full.faces).query(over_atlas(mesh.vertices))
    uv = found.interpolate(full.uv, full.faces)

    def fill(values: Floats) -> Texture:
        texture = torch.zeros(size, size, 3)
        texture[covered] = torch.from_numpy(values).float()
        filled: Texture = to_8bit(dilate(texture, covered)).numpy()
        return filled

    textures: dict[str, Texture] = {}
    for name, texture in _textures(model.material).items():
        if texture is None:
            continue
        values = sample(texture, uv)
        if name == "normal":
            frame = _tangent_frame(full, vertex_tangents(full), lambda v: found.interpolate(v, full.faces))
            world = np.einsum("nkx,nk->nx", frame, values * 2 - 1)
            target = _tangent_frame(mesh, vertex_tangents(mesh), over_atlas)
            values = _unit(np.einsum("nkx,nx->nk", target, world)) / 2 + 0.5
        textures[name] = fill(values)
    return replace(model.material, **textures)  # type: ignore[arg-type]


def sample(texture: Texture, uv: Floats) -> Floats:
    """Look up a texture (S, S, C) bilinearly at `uv` (N, 2), origin at its top left; returns (N, C) in [0, 1]."""
    side = len(texture)
    places = np.clip(uv[:, ::-1].T * side - 0.5, 0, side - 1)
    channels = [map_coordinates(texture[..., c].astype(np.float32), places, order=1) for c in range(texture.shape[2])]
    looked_up: Floats = np.stack(channels, axis=1).astype(np.float64) / 255
    return looked_up


def _textures(material: Material) -> dict[str, Texture | None]:
    return {name: value for name, value in vars(material).items() if value is None or isinstance(value, np.ndarray)}


def _tangent_frame(mesh: UvMesh, tangents: npt.NDArray[np.float32], spread: Any) -> Floats:
    """Return the tangent, bitangent and normal (N, 3, 3), rows, at the points that `spread` takes vertex values to."""
    normal, tangent = _unit(spread(mesh.normals)), spread(tangents)
    along = _unit(tangent[:, :3] - normal * (normal * tangent[:, :3]).sum(axis=1, keepdims=True))
    return np.stack([along, np.cross(normal, along) * np.sign(tangent[:, 3:]), normal], axis=1)


def _unit(vectors: Floats) -> Floats:
    length: Floats = np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return vectors / length

"""Baking: a field over space becomes a texture over the UV atlas.

Texture arrays are (S, S, C) with row 0 at the top of the image, which is v = 0 (glTF 2.0 §3.8.3).
"""

from collections.abc import Callable

import torch
from scipy.ndimage import distance_transform_edt

from reconstruction.atlas import UvMesh
from reconstruction.rasterizer import get_rasterizer

Tensor = torch.Tensor
CPU = torch.device("cpu")
Field = Callable[[Tensor], Tensor]  # points (N, 3) float32 -> values (N, C) float32

# Four samples a texel, each at the middle of a quarter of it: a box filter over the texel's footprint.
SUBTEXELS = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))
CHUNK = 65_536  # points sampled at once: bounds the memory of the field's layers


def rasterize_atlas(mesh: UvMesh, size: int, offset: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Rasterise the mesh in UV space: (1, size, size, 4) as `Rasterizer.rasterize` gives it.

    `offset` (du, dv), in texels, moves the point of each texel that is looked at away from its centre.
    """
    uv = torch.from_numpy(mesh.uv) - torch.tensor(offset) / size
    clip = torch.cat([2 * uv - 1, torch.zeros(len(uv), 1), torch.ones(len(uv), 1)], dim=1)
    return get_rasterizer("numba", CPU).rasterize(clip[None], torch.from_numpy(mesh.faces), (size, size))


def bake(mesh: UvMesh, field: Field, size: int) -> tuple[Tensor, Tensor]:
    """Sample `field`, which takes points in the mesh's frame, over the atlas.

    Returns the texture (size, size, C) float32, the mean of up to four samples a texel, and `covered`
    (size, size) bool: the texels that any triangle reaches. The others are 0; see `dilate`.
    """
    rasterizer = get_rasterizer("numba", CPU)
    vertices, faces = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces)
    total = samples = torch.zeros(())
    for offset in SUBTEXELS:
        rast = rasterize_atlas(mesh, size, offset)
        hit = rast[0, ..., 3] > 0
        points = rasterizer.interpolate(vertices[None], rast, faces)[0][hit]
        with torch.no_grad():
            values = torch.cat([field(chunk) for chunk in torch.split(points, CHUNK)])
        layer = torch.zeros(size, size, values.shape[1])
        layer[hit] = values
        total, samples = total + layer, samples + hit
    return total / samples.clamp_min(1)[..., None], samples > 0


def dilate(texture: Tensor, covered: Tensor) -> Tensor:
    """Give every texel (S, S, C) that is not covered (S, S) the value of its nearest covered texel.

    Filling the whole gutter, not a few texels of it, lets mip-maps shrink without a seam's colour bleeding in.
    """
    _, (rows, columns) = distance_transform_edt(~covered.numpy(), return_indices=True)
    return texture[torch.from_numpy(rows).long(), torch.from_numpy(columns).long()]


def to_8bit(texture: Tensor) -> Tensor:
    """Quantise values in [0, 1] to uint8, rounding to the nearest; values beyond are clipped."""
    return (texture.clamp(0, 1) * 255).round().to(torch.uint8)

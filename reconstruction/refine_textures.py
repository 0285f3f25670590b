"""Texture refinement on fixed topology, the second phase of Munkberg et al. 2022 (§3.3 and supplement).

The volumetric field that the baked texture comes from is smooth at the scale of its finest grid. Here the
texels themselves are fitted to the training photos, through the same trilinear lookups that viewers make, with
geometry, cameras and exposure as the first phase left them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from reconstruction.appearance import ReadyLight
from reconstruction.atlas import COARSEST_MIP, UvMesh
from reconstruction.bake import CPU
from reconstruction.cameras import to_clip
from reconstruction.data import Views
from reconstruction.rasterizer import get_rasterizer
from reconstruction.rasterizer.derivatives import attribute_derivatives
from reconstruction.rasterizer.sampling import mip_level_from_derivatives
from reconstruction.view_renderer import decode, encode, expose
from scan2twin.progress import Progress

Tensor = torch.Tensor

LEARNING_RATE = 0.01  # sRGB units a step (Munkberg et al. 2022, supplement: materials)
DECAY = 0.1  # of the learning rate over the run
DIMMEST = 0.05  # light relative to a surface that faces the camera; with less a photo says nothing of the albedo
STEEPEST = 4.0  # slope of depth against the image plane; beyond, it is the edge of something in front (or grazing)


@dataclass(frozen=True)
class Observations:
    """What one photo says of the texture: N pixels well inside the object's picture."""

    uv: Tensor  # (1, N, 1, 2)
    mip_level: Tensor  # (1, N, 1)
    color: Tensor  # (1, N, 1, 3) sRGB, as it would be with the view's gain at 1 and in even light
    weight: Tensor  # (1, N, 1, 1): trust in the view, less where it sees the surface at a grazing angle


def observe(
    mesh: UvMesh,
    views: Views,
    gains: Tensor,
    texture_size: int,
    light: ReadyLight | None = None,
    finish: Tensor | None = None,
) -> list[Observations]:
    """Find where each photo's pixels lie in the texture. `gains` (B, 3) act on linear RGB.

    With a `light` the colours are the albedo that it lit: `finish` (S, S, 2) holds roughness and metallic.

    Pixels on outlines, of the object or of one part before another, are left out: there a mask or a pose that
    is off by a pixel would paint one thing's colour on another.
    """
    rasterizer = get_rasterizer("numba", CPU)
    vertices, faces = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces)
    texture_coordinates = torch.from_numpy(mesh.uv)[None]
    normals = torch.from_numpy(mesh.normals)[None]
    centers = torch.from_numpy(views.centers()).float()
    observed = []
    for k in range(len(views)):
        clip = to_clip(vertices, (views.clip_from_camera[k] @ views.camera_from_unit[k])[None])
        rast = rasterizer.rasterize(clip, faces, (views.resolution, views.resolution))
        photo = views.images[k].float() / 255
        depth = rasterizer.interpolate(clip[..., 3:].contiguous(), rast, faces)[0, ..., 0]
        focal = float(views.clip_from_camera[k, 0, 0]) * views.resolution / 2  # pixels
        inside = _interior(depth, photo[..., 3], focal)
        uv = rasterizer.interpolate(texture_coordinates, rast, faces)
        da = attribute_derivatives(texture_coordinates, rast * inside[None, ..., None], clip, faces)
        to_camera = centers[k] - rasterizer.interpolate(vertices[None], rast, faces)[0][inside]
        normal = functional.normalize(rasterizer.interpolate(normals, rast, faces)[0][inside], dim=1)
        cosine = (normal * functional.normalize(to_camera, dim=1)).sum(dim=1).clamp_min(0)
        mip_level = mip_level_from_derivatives(da[0][inside], texture_size, texture_size).clamp(max=COARSEST_MIP)
        color = expose(photo[inside][:, :3], 1 / gains[k])
        if light is not None and finish is not None:
            sampled = rasterizer.texture(finish[None], uv[0][inside][None, :, None], boundary_mode="clamp")[0, :, 0]
            response = light.response(normal, to_camera, sampled[:, :1], sampled[:, 1:])
            color = encode((decode(color) - response.offset) / response.slope.clamp_min(DIMMEST)).clamp(0, 1)
        observed.append(
            Observations(
                uv=uv[0][inside][None, :, None],
                mip_level=mip_level[None, :, None],
                color=color[None, :, None],
                weight=views.weight[k] * cosine.square()[None, :, None, None],
            )
        )
    return observed


def _interior(depth: Tensor, mask: Tensor, focal: float) -> Tensor:
    """Tell which pixels (H, W) lie, with all their eight neighbours, on the object and on one smooth surface."""

    def lowest(image: Tensor) -> Tensor:
        return -functional.max_pool2d(-image[None, None], 3, stride=1, padding=1)[0, 0]

    covered = lowest(depth) > 0
    step = -lowest(-depth) - lowest(depth)  # over two pixels, each depth / focal wide on the surface
    return covered & (step < STEEPEST * 2 * depth / focal) & (lowest(mask) >= 1)


def refine(base_color: Tensor, observed: Sequence[Observations], iterations: int, progress: Progress) -> Tensor:
    """Fit the texture (S, S, 3), sRGB in [0, 1], to what the photos show; texels no photo shows stay as they are.

    Adam on the absolute error, one photo a step, in an order that is shuffled the same way every time.
    """
    rasterizer = get_rasterizer("numba", CPU)
    texture = base_color.clone().requires_grad_()
    optimizer = torch.optim.Adam([texture], lr=LEARNING_RATE, betas=(0.9, 0.99), fused=True)
    random = np.random.default_rng(0)
    order: list[int] = []
    progress.start("refine texture", iterations)
    for i in range(iterations):
        order = order or random.permutation(len(observed)).tolist()
        photo = observed[order.pop()]
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * DECAY ** (i / iterations)
        seen = rasterizer.texture(
            texture[None],
            photo.uv,
            mip_level=photo.mip_level,
            filter_mode="linear-mipmap-linear",
            boundary_mode="clamp",
        )
        error = (photo.weight * (seen - photo.color).abs()).mean()
        optimizer.zero_grad(set_to_none=True)
        error.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress.advance(error=float(error.detach()))
    return texture.detach().clamp(0, 1)

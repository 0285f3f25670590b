"""Texture refinement on fixed topology, the second phase of Munkberg et al. 2022 (§3.3 and supplement).

The volumetric field that the baked texture comes from is smooth at the scale of its finest grid. Here the
texels themselves are fitted to the training photos, through the same trilinear lookups that viewers make, with
geometry, light, cameras and exposure as the first phase left them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch.nn import functional

from reconstruction.appearance import ReadyLight
from reconstruction.atlas import UvMesh, vertex_tangents
from reconstruction.bake import CPU
from reconstruction.cameras import to_clip
from reconstruction.data import Views
from reconstruction.maps import LEAST, MOST, mip_level, respond, tangent_frame
from reconstruction.rasterizer import get_rasterizer
from reconstruction.rasterizer.derivatives import pixel_derivatives
from reconstruction.view_renderer import expose, relit
from scan2twin.progress import Progress

Tensor = torch.Tensor

LEARNING_RATE = 0.005  # of all channels a step; at 0.01 the last photos leave their noise on the texture
SAMPLE = 100_000  # pixels of all photos together that tell which maps are closest to them
DECAY = 0.1  # of the learning rate over the run
STEEPEST = 4.0  # slope of depth against the image plane; beyond, it is the edge of something in front (or grazing)


@dataclass(frozen=True)
class Observations:
    """What one photo says of the textures: N pixels well inside the object's picture.

    Vectors are in the mesh's frame, in half precision, since there are millions of them.
    """

    uv: Tensor  # (N, 2)
    mip_level: Tensor  # (N,)
    color: Tensor  # (N, 3) sRGB, as it would be with the view's gain at 1
    weight: Tensor  # (N, 1): trust in the view, less where it sees the surface at a grazing angle
    normal: Tensor  # (N, 3), interpolated
    tangent: Tensor  # (N, 4), interpolated
    to_camera: Tensor  # (N, 3)


def observe(mesh: UvMesh, views: Views, gains: Tensor, texture_size: int) -> list[Observations]:
    """Find where each photo's pixels lie in the texture. `gains` (B, 3) act on linear RGB.

    Pixels on outlines, of the object or of one part before another, are left out: there a mask or a pose that
    is off by a pixel would paint one thing's colour on another.
    """
    rasterizer = get_rasterizer("numba", CPU)
    vertices, faces = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces)
    attributes = torch.from_numpy(
        np.concatenate([mesh.uv, mesh.vertices, mesh.normals, vertex_tangents(mesh)], axis=1)
    )[None]
    centers = torch.from_numpy(views.centers()).float()
    observed = []
    for k in range(len(views)):
        clip = to_clip(vertices, (views.clip_from_camera[k] @ views.camera_from_unit[k])[None])
        rast = rasterizer.rasterize(clip, faces, (views.resolution, views.resolution))
        photo = views.images[k].float() / 255
        depth = rasterizer.interpolate(clip[..., 3:].contiguous(), rast, faces)[0, ..., 0]
        focal = float(views.clip_from_camera[k, 0, 0]) * views.resolution / 2  # pixels
        row, column = torch.nonzero(_interior(depth, photo[..., 3], focal)).unbind(1)
        surface = rasterizer.interpolate(attributes, rast[:, None, row, column], faces)[0, 0]
        # Copies, since the parts would keep the whole alive.
        uv, point, normal, tangent = (part.clone() for part in torch.split(surface, [2, 3, 3, 4], dim=1))
        da = pixel_derivatives(attributes[..., :2], rast, clip, faces, torch.zeros_like(row), row, column)
        to_camera = centers[k] - point
        cosine = functional.cosine_similarity(normal, to_camera, dim=1).clamp_min(0)
        observed.append(
            Observations(
                uv=uv,
                mip_level=mip_level(da, texture_size),
                color=expose(photo[row, column, :3], 1 / gains[k]),
                weight=views.weight[k] * cosine.square()[:, None],
                normal=normal.half(),
                tangent=tangent.half(),
                to_camera=to_camera.half(),
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


def closest(candidates: Sequence[Tensor], observed: Sequence[Observations], light: ReadyLight | None) -> Tensor:
    """Return those of several maps (S, S, 8) that show what is closest to the photos; the first among equals."""
    sample = _sample(observed)

    @torch.no_grad()
    def error(maps: Tensor) -> float:
        color, others = torch.split(_looked_up(maps, sample.uv, sample.mip_level), [3, 5], dim=1)
        shown = color if light is None else _lit(color, others, sample, light)
        return float((sample.weight * (shown - sample.color).abs()).mean())

    return min(candidates, key=error)


def _sample(observed: Sequence[Observations]) -> Observations:
    """Join photos, thinned evenly to about `SAMPLE` pixels."""
    step = max(1, sum(len(photo.color) for photo in observed) // SAMPLE)
    names = [field.name for field in fields(Observations)]
    return Observations(**{name: torch.cat([getattr(photo, name)[::step] for photo in observed]) for name in names})


def refine(
    maps: Tensor,
    observed: Sequence[Observations],
    light: ReadyLight | None,
    iterations: int,
    progress: Progress,
    glossy: bool = True,
) -> Tensor:
    """Fit maps (S, S, 8) to what the photos show, under `light`; texels that no photo shows stay as they are.

    Without a light, or unless `glossy`, only the colour is fitted. The rest varies less and is fitted at half the size,
    a quarter of the work. Adam on the absolute error, one photo a step, in an order that is shuffled the same way every
    time.
    """
    color, finish = maps[..., :3].clone().requires_grad_(), _resized(maps[..., 3:], maps.shape[0] // 2)
    start = finish.clone()
    fitted = [color, finish.requires_grad_()] if glossy and light is not None else [color]
    optimizer = torch.optim.Adam(fitted, lr=LEARNING_RATE, betas=(0.9, 0.99), fused=True)
    random = np.random.default_rng(0)
    order: list[int] = []
    low, high = torch.tensor(LEAST), torch.tensor(MOST)
    progress.start("refine textures", iterations)
    for i in range(iterations):
        order = order or random.permutation(len(observed)).tolist()
        photo = observed[order.pop()]
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * DECAY ** (i / iterations)
        shown = _looked_up(color, photo.uv, photo.mip_level)
        if light is not None:
            shown = _lit(shown, _looked_up(finish, photo.uv, photo.mip_level - 1), photo, light)
        error = (photo.weight * (shown - photo.color).abs()).mean()
        optimizer.zero_grad(set_to_none=True)
        error.backward()  # type: ignore[no-untyped-call]
        if finish.grad is not None:
            finish.grad[..., 4] = 0  # occlusion is known
        optimizer.step()
        color.data.clamp_(0, 1)  # beyond their bounds, decoding and the BRDF have no value
        finish.data[..., :4].clamp_(low, high)
        progress.advance(error=float(error.detach()))
    change = _resized(finish.detach() - start, maps.shape[0])
    refined = maps[..., 3:7] + change[..., :4]
    return torch.cat([color.detach(), refined.clamp(low, high), maps[..., 7:]], dim=2)


def _resized(maps: Tensor, size: int) -> Tensor:
    """Scale maps (S, S, C) to (size, size, C): means where it shrinks, bilinear where it grows."""
    mode = "area" if size < maps.shape[0] else "bilinear"
    scaled: Tensor = functional.interpolate(maps.permute(2, 0, 1)[None], size=(size, size), mode=mode)
    return scaled[0].permute(1, 2, 0).contiguous()


def _looked_up(maps: Tensor, uv: Tensor, mip_level: Tensor) -> Tensor:
    """Sample maps (S, S, C) at N places: (N, C)."""
    sampled = get_rasterizer("numba", CPU).texture(
        maps[None],
        uv[None, None],
        mip_level=mip_level[None, None],
        filter_mode="linear-mipmap-linear",
        boundary_mode="clamp",
    )
    return sampled[0, 0]


def _lit(color: Tensor, others: Tensor, photo: Observations, light: ReadyLight) -> Tensor:
    """Return the sRGB colours (N, 3) that a photo shows of sampled colours (N, 3) and other maps (N, 5)."""
    frame = tangent_frame(photo.normal.float(), photo.tangent.float())
    response = respond(light, frame, photo.to_camera.float(), others)
    return relit(color, response.slope, response.offset)

"""Rendering one view of the mesh being optimised, and the result that is measured."""

from typing import Any

import torch

from reconstruction.cameras import to_clip
from reconstruction.field import MaterialField
from reconstruction.rasterizer import Rasterizer

# Constants of the sRGB curve above its linear toe, IEC 61966-2-1: 1.055 x^(1/2.4) - 0.055.
SRGB_POWER = 2.4
SRGB_OFFSET = 0.055


def expose(srgb: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Return sRGB values (..., 3) as they would be with the linear light multiplied by `gain` (3,).

    Exact above the curve's linear toe (values over 0.04), without decoding: s + 0.055 is a power of the light.
    """
    return (srgb + SRGB_OFFSET) * gain ** (1 / SRGB_POWER) - SRGB_OFFSET


def render_view(
    rasterizer: Rasterizer,
    vertices: torch.Tensor,
    faces: torch.Tensor,
    topology: Any,
    field: MaterialField,
    clip_from_unit: torch.Tensor,
    resolution: int,
    gain: torch.Tensor | None = None,
) -> torch.Tensor:
    """Render the mesh as (R, R, 4) float32: premultiplied sRGB and coverage, bottom row first.

    vertices (V, 3) in the unit frame, faces (F, 3) int32; clip_from_unit (4, 4) acts on column vectors; `gain` (3,)
    multiplies linear RGB (a view's exposure and white balance). Differentiable in everything but the faces.
    """
    clip = to_clip(vertices, clip_from_unit[None])
    rast = rasterizer.rasterize(clip, faces, (resolution, resolution))
    position = rasterizer.interpolate(vertices[None], rast, faces)
    seen = torch.nonzero(rast[0, ..., 3].reshape(-1) > 0).squeeze(1)
    points = position.reshape(-1, 3)[seen]
    srgb = field.albedo_srgb(points) if gain is None else expose(field.albedo_srgb(points), gain)
    rgba = torch.cat([srgb, torch.ones(len(srgb), 1)], dim=1)
    image = torch.zeros(resolution * resolution, 4).index_copy(0, seen, rgba).view(1, resolution, resolution, 4)
    return rasterizer.antialias(image, rast, clip, faces, topology)[0]

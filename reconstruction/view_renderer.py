"""Rendering one view of the mesh being optimised, and the result that is measured."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from reconstruction.appearance import ReadyLight, camera_centre
from reconstruction.cameras import to_clip
from reconstruction.field import CHANNELS, MaterialField
from reconstruction.rasterizer import Rasterizer
from reconstruction.surface_normals import perturbed, vertex_normals

# Constants of the sRGB curve above its linear toe, IEC 61966-2-1: 1.055 x^(1/2.4) - 0.055.
SRGB_POWER = 2.4
SRGB_OFFSET = 0.055
SRGB_WHITE = 1.055
DARKEST = (SRGB_OFFSET / SRGB_WHITE) ** SRGB_POWER  # light of sRGB 0, by the curve without its toe


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
    light: ReadyLight | None = None,
) -> torch.Tensor:
    """Render the mesh as (R, R, 4) float32: premultiplied sRGB and coverage, bottom row first.

    vertices (V, 3) in the unit frame, faces (F, 3) int32; clip_from_unit (4, 4) acts on column vectors; `gain` (3,)
    multiplies linear RGB (a view's exposure and white balance). Without a `light`
    the surface shows its albedo. Differentiable in everything but the faces.
    """
    clip = to_clip(vertices, clip_from_unit[None])
    rast = rasterizer.rasterize(clip, faces, (resolution, resolution))
    attributes = vertices if light is None else torch.cat([vertices, vertex_normals(vertices, faces)], dim=1)
    interpolated = rasterizer.interpolate(attributes[None], rast, faces)
    seen = torch.nonzero(rast[0, ..., 3].reshape(-1) > 0).squeeze(1)
    points = interpolated.reshape(-1, attributes.shape[1]).index_select(0, seen)
    if light is None:
        srgb = field.albedo_srgb(points)
    else:
        srgb = lit_srgb(light, field, points[:, :3].contiguous(), points[:, 3:], camera_centre(clip_from_unit.detach()))
    if gain is not None:
        srgb = expose(srgb, gain)
    rgba = torch.cat([srgb, srgb.new_ones(len(srgb), 1)], dim=1)
    image = srgb.new_zeros(resolution * resolution, 4).index_copy(0, seen, rgba).view(1, resolution, resolution, 4)
    return rasterizer.antialias(image, rast, clip, faces, topology)[0]


def lit_srgb(
    light: ReadyLight, field: MaterialField, points: torch.Tensor, normals: torch.Tensor, centre: torch.Tensor
) -> torch.Tensor:
    """Return what a camera at `centre` (3,) sees of surface points (N, 3) with normals (N, 3) of any length: sRGB."""
    albedo, roughness, metallic, bump = torch.split(field.channels(points), CHANNELS, dim=1)
    response = light.response(perturbed(normals, bump), centre - points, roughness, metallic)
    return relit(albedo, response.slope, response.offset)


def decode(srgb: torch.Tensor) -> torch.Tensor:
    """Return linear light from sRGB values (..., 3) by the curve above its toe, as `expose` does."""
    return ((srgb + SRGB_OFFSET) / SRGB_WHITE) ** SRGB_POWER


def encode(light: torch.Tensor) -> torch.Tensor:
    """Return sRGB values from linear light (..., 3): undoes `decode`; what is darker than sRGB 0 gives 0."""
    return SRGB_WHITE * light.clamp(min=DARKEST) ** (1 / SRGB_POWER) - SRGB_OFFSET


def relit(srgb: torch.Tensor, slope: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Return `encode(decode(srgb) * slope + offset)` of colours (N, 3), with its gradient in few operations.

    slope and offset are (N, 3) or (N, 1).
    """
    shown: torch.Tensor = _Relight.apply(srgb, slope, offset)  # type: ignore[no-untyped-call]
    return shown


class _Relight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, srgb: torch.Tensor, slope: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        light = decode(srgb)
        reflected = light * slope + offset
        shown = encode(reflected)
        ctx.save_for_backward(srgb, slope, offset, light, reflected, shown)
        return shown

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        srgb, slope, offset, light, reflected, shown = ctx.saved_tensors
        # Of a power x^p the derivative is p x^p / x, and both are at hand.
        d_reflected = (shown + SRGB_OFFSET).mul_(grads[0]).div_(reflected).mul_(1 / SRGB_POWER)
        d_reflected.masked_fill_(reflected < DARKEST, 0)
        d_srgb = (d_reflected * slope).mul_(light).div_(srgb + SRGB_OFFSET).mul_(SRGB_POWER)
        d_slope = d_reflected * light
        return d_srgb, d_slope.sum_to_size(slope.shape), d_reflected.sum_to_size(offset.shape)

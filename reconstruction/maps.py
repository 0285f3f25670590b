"""A model's textures as numbers: base colour, finish, relief and occlusion over the UV atlas, to fit and to draw with.

Map stacks are (S, S, 8) float32, row 0 at v = 0. Channels: sRGB base colour, perceptual roughness, metallic, slopes
along the tangent and the bitangent (the tangents of the angles by which the normal is tilted), and ambient occlusion.
"""

import numpy as np
import torch
from torch.nn import functional

from reconstruction.appearance import ReadyLight
from reconstruction.atlas import COARSEST_MIP, UvMesh, vertex_tangents
from reconstruction.bake import CPU, bake, dilate, rasterize_atlas, to_8bit
from reconstruction.color import linear_to_srgb
from reconstruction.field import MIN_ROUGHNESS, STEEPEST_BUMP, MaterialField
from reconstruction.model import MATT, Material
from reconstruction.occlusion import ambient_occlusion
from reconstruction.rasterizer import get_rasterizer
from reconstruction.shading import Response
from reconstruction.unseen import Bools, fill_unseen

Tensor = torch.Tensor

CHANNELS = [3, 1, 1, 2, 1]
LEAST = (MIN_ROUGHNESS, 0.0, -STEEPEST_BUMP, -STEEPEST_BUMP)  # of roughness, metallic and slopes
MOST = (1.0, 1.0, STEEPEST_BUMP, STEEPEST_BUMP)
STEEPEST = 0.1  # least z of a normal that is read back from a texture
FLATTEST = 0.02  # root mean square slope below which a normal texture says nothing: about one degree


def bake_maps(mesh: UvMesh, seen: Bools, field: MaterialField, size: int) -> Tensor:
    """Bake a field over a mesh, both in the unit frame; faces not `seen` (F,) continue what is round them."""

    def sample(points: Tensor) -> Tensor:
        albedo, *others = field(points)
        return torch.cat([linear_to_srgb(albedo), *others], dim=1)

    values, covered = bake(mesh, sample, size)
    surface, bump = torch.split(dilate(fill_unseen(values, mesh, seen), covered), [5, 3], dim=2)
    vertices, normals, faces = mesh.welded()
    occlusion = np.zeros(len(mesh.vertices), np.float32)
    occlusion[mesh.faces] = ambient_occlusion(vertices, normals, faces)[faces]

    rast = rasterize_atlas(mesh, size)
    attributes = np.concatenate([mesh.normals, vertex_tangents(mesh), occlusion[:, None]], axis=1)
    spread = get_rasterizer("numba", CPU).interpolate(
        torch.from_numpy(attributes)[None], rast, torch.from_numpy(mesh.faces)
    )
    normal, tangent, occluded = torch.split(spread[0], [3, 4, 1], dim=2)
    slopes = [(bump * along).sum(dim=2, keepdim=True) for along in tangent_frame(normal, tangent)[1:]]
    return torch.cat([surface, dilate(torch.cat([*slopes, occluded], dim=2), rast[0, ..., 3] > 0)], dim=2)


def tangent_frame(normals: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit normals, tangents and bitangents (..., 3) from interpolated normals and tangents (..., 4).

    As glTF 2.0 §3.7.2.1 has it: the bitangent is cross(normal, tangent) · w.
    """
    normal = functional.normalize(normals, dim=-1)
    tangent = functional.normalize(tangents[..., :3], dim=-1)
    return normal, tangent, torch.linalg.cross(normal, tangent) * tangents[..., 3:].sign()


def respond(
    light: ReadyLight,
    frame: tuple[Tensor, Tensor, Tensor],
    to_camera: Tensor,
    sampled: Tensor,
    exposed_for: float | None = None,
) -> Response:
    """Light N points: `frame` as from `tangent_frame`, vectors to the camera (N, 3), all maps but colour (N, 5)."""
    roughness, metallic, slope, occlusion = torch.split(sampled, CHANNELS[1:], dim=1)
    return light.response(tilted(frame, slope), to_camera, roughness, metallic, occlusion, exposed_for)


def tilted(frame: tuple[Tensor, Tensor, Tensor], slope: Tensor) -> Tensor:
    """Return the unit normals (N, 3) of a relief with slopes (N, 2) on surfaces with these tangent frames."""
    normal, tangent, bitangent = frame
    return functional.normalize(normal + slope[:, :1] * tangent + slope[:, 1:] * bitangent, dim=1)


def mip_level(uv_da: Tensor, size: int) -> Tensor:
    """Return the level (...,) at which to look a texture of `size` texels a side up for pixels with `uv_da` (..., 4).

    `uv_da` holds (du/dx, du/dy, dv/dx, dv/dy). A pixel that covers one texel in area gives level -1, taken as 0: a
    trilinear lookup already averages over about two texels a side. By its longer axis alone, as Williams 1983 has it,
    a pixel seen at a slant would be blurred along the other one as well; viewers filter anisotropically there.
    """
    along_u, across_u, across_v, along_v = (uv_da * size).unbind(-1)
    area = (along_u * along_v - across_u * across_v).abs()
    return (torch.log2(area.clamp_min(1e-20)) / 2 - 1).clamp(0, COARSEST_MIP)


def without_occlusion(maps: Tensor) -> Tensor:
    """Return maps of a surface that hides nothing of the sky from itself."""
    return torch.cat([maps[..., :7], torch.ones_like(maps[..., 7:])], dim=2)


def matt(maps: Tensor) -> Tensor:
    """Return maps with the finish of a matt, flat surface: what to assume where the light showed neither."""
    color, _, _, _, occlusion = torch.split(maps, CHANNELS, dim=2)
    plain = torch.tensor([MATT, 0.0, 0.0, 0.0]).expand(*color.shape[:2], 4)
    return torch.cat([color, plain, occlusion], dim=2)


def to_material(maps: Tensor) -> Material:
    """Quantise maps to textures; slopes that say nothing give no normal texture, nor does occlusion of 1 count."""
    color, roughness, metallic, slope, occlusion = torch.split(maps, CHANNELS, dim=2)
    packed = to_8bit(torch.cat([occlusion, roughness, metallic], dim=2)).numpy()
    normal = None
    if float(slope.square().sum(dim=2).mean().sqrt()) >= FLATTEST:
        direction = functional.normalize(torch.cat([slope, torch.ones_like(slope[..., :1])], dim=2), dim=2)
        normal = to_8bit(direction / 2 + 0.5).numpy()
    return Material(to_8bit(color).numpy(), packed, normal, occluded=bool((occlusion < 1).any()))


def from_material(material: Material) -> Tensor:
    """Return the maps that `material`'s textures stand for."""
    size = material.base_color.shape[:2]
    color = torch.from_numpy(material.base_color).float() / 255
    slope, finish = torch.zeros(*size, 2), torch.tensor([material.roughness, 0.0]).expand(*size, 2)
    occlusion = torch.ones(*size, 1)
    if material.metallic_roughness is not None:
        packed = torch.from_numpy(material.metallic_roughness).float() / 255
        finish = packed[..., 1:]
        occlusion = packed[..., :1] if material.occluded else occlusion
    if material.normal is not None:
        normal = torch.from_numpy(material.normal).float() / 255 * 2 - 1
        slope = normal[..., :2] / normal[..., 2:].clamp_min(STEEPEST)
    return torch.cat([color, finish, slope, occlusion], dim=2)

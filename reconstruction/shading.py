"""Physically based shading: the metallic-roughness material of glTF 2.0 under an environment, by the split sum.

Cook-Torrance specular with GGX distribution, separable Smith masking and Schlick's Fresnel (glTF 2.0 specification,
appendix B), over a Lambert base that keeps what the specular layer does not reflect. The environment's share is
prefiltered in `reconstruction.light`; the material's share, the second sum of Karis 2013, is a table made here.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reconstruction.light import PrefilteredLight
from reconstruction.rasterizer.sampling import Pyramid, stack_levels

DIELECTRIC_F0 = 0.04  # reflectance at normal incidence for an index of refraction of 1.5 (glTF 2.0, appendix B.2)
_TABLE_SIZE = 32


class Response(NamedTuple):
    """What N surface points send to the camera: linear radiance = albedo * slope + offset, each (N, 1) or (N, 3).

    Shading is linear in the albedo, which serves rendering as well as finding the albedo that a photo shows.
    """

    slope: Tensor
    offset: Tensor


def split_sum(
    normals: Tensor, view_directions: Tensor, roughness: Tensor, metallic: Tensor, light: PrefilteredLight
) -> Response:
    """Light N surface points by an environment.

    Args:
        normals: (N, 3) unit normals, in the light's frame.
        view_directions: (N, 3) unit vectors from the point to the camera.
        roughness: (N, 1) perceptual roughness in [0, 1] (alpha is its square).
        metallic: (N, 1) in [0, 1].
        light: the prefiltered environment.

    Returns:
        The response, differentiable in everything but the tables.

    """
    cosine = (normals * view_directions).sum(dim=1, keepdim=True)
    mirrored = 2 * cosine * normals - view_directions
    # Interpolated normals may turn from the viewer by a little at the silhouette.
    lookup = torch.cat((cosine.clamp(0, 1), roughness), dim=1)
    factors = reflectance_pyramid(normals.device).sample(lookup[None], None)[0]
    scale, bias = factors[:, :1], factors[:, 1:]
    reflected = light.reflected(mirrored, roughness[:, 0])
    matt = 1 - metallic
    base = matt * (1 - (DIELECTRIC_F0 * scale + bias)) * light.irradiance(normals)
    # F0 is the albedo where the surface is metal.
    return Response(base + metallic * scale * reflected, (matt * DIELECTRIC_F0 * scale + bias) * reflected)


@cache
def reflectance_table() -> Tensor:
    """Scale and bias of F0 in the light reflected from an even environment: (1, roughness, n.v, 2).

    Karis 2013, listing 3: integral of the specular BRDF times cosine = F0 * scale + bias. Rows are perceptual roughness
    and columns n.v, at (i + 1/2) / size.
    """
    centres = (np.arange(_TABLE_SIZE) + 0.5) / _TABLE_SIZE
    rows = [specular_reflectance(centres, float(roughness)) for roughness in centres]
    return torch.from_numpy(np.stack(rows)[None]).float()


@cache
def reflectance_pyramid(device: torch.device) -> Pyramid:
    """`reflectance_table` on a device, ready to be looked up."""
    return stack_levels([reflectance_table().to(device)], "clamp")


def specular_reflectance(cos_view: np.ndarray, roughness: float, samples: int = 32) -> np.ndarray:
    """Integrate the specular BRDF over the hemisphere of lights: (K, 2) scale and bias of F0 at n.v (K,).

    Half vectors are drawn by the GGX distribution on a regular grid of `samples` heights and half as many azimuths
    (half the circle: the other is its mirror image), so only masking and Fresnel are left to sum.
    """
    alpha2 = roughness**4
    height = (np.arange(samples) + 0.5) / samples
    azimuth = (np.arange(samples // 2) + 0.5) / (samples // 2) * np.pi
    nh = np.sqrt((1 - height) / (1 + (alpha2 - 1) * height))[:, None]
    nv = cos_view[:, None, None]
    vh = np.sqrt(1 - nh**2) * np.cos(azimuth) * np.sqrt(1 - nv**2) + nh * nv
    nl = 2 * vh * nh - nv
    lit = (nl > 0) & (vh > 0)
    nl, vh = np.where(lit, nl, 1.0), np.where(lit, vh, 1.0)
    # f * n.l / density = G (v.h) / (n.h n.v), with G / (n.l n.v) = 4 / ((n.l + root)(n.v + root)).
    masking = 4 * nl / ((nl + np.sqrt(alpha2 + (1 - alpha2) * nl**2)) * (nv + np.sqrt(alpha2 + (1 - alpha2) * nv**2)))
    weight = np.where(lit, masking * vh / nh, 0.0)
    fresnel = (1 - vh) ** 5
    scale = (weight * (1 - fresnel)).mean(axis=(1, 2))
    bias = (weight * fresnel).mean(axis=(1, 2))
    return np.stack((scale, bias), axis=1)

"""How a surface point looks to a camera: even light from all sides and a lamp at the camera.

A photo taken with a flash is lit from the camera, so the light moves from photo to photo and no fixed colour on the
surface explains them all. Shading is linear in the albedo, so what the light does is a slope and an offset for each
point: that serves rendering as well as finding the albedo that a photo shows.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from scan2twin.frames import Document

DIELECTRIC_F0 = 0.04  # reflectance at normal incidence for an index of refraction of 1.5 (glTF 2.0, appendix B.2)
START_SHARE = 0.3  # of the lamp, where its gradient says most on whether there is one


class Light(Document):
    """`light.json`: see `Headlight`."""

    headlight_share: float
    distance: float


class Response(NamedTuple):
    """What N surface points send to the camera: linear radiance = albedo * slope (N, 1) + offset (N, 1)."""

    slope: Tensor
    offset: Tensor


class Headlight(nn.Module):
    """Even light and a small lamp at the camera; a matt surface facing a camera at `distance` shows its albedo.

    `share` is the lamp's part of that light; even light gives the rest. `distance` is in unit-frame lengths.
    """

    def __init__(self, distance: float, share: float = START_SHARE) -> None:
        super().__init__()
        self.distance = distance
        self.share = nn.Parameter(torch.tensor(float(share)))

    def response(
        self,
        normals: Tensor,
        to_camera: Tensor,
        roughness: Tensor,
        metallic: Tensor,
        exposed_for: float | None = None,
    ) -> Response:
        """Return the response of points with unit normals (N, 3), vectors to the camera (N, 3) and material (N, 1).

        `exposed_for` is the distance at which the lamp shows the albedo, instead of `distance`.

        Lambert and Cook-Torrance with GGX and separable Smith masking (glTF 2.0, appendix B.3) at l = v = h, where
        Schlick's Fresnel is F0; the lamp's light falls off with the square of the distance.
        """
        distance2 = to_camera.square().sum(dim=1, keepdim=True)
        cosine = (normals * to_camera).sum(dim=1, keepdim=True) * distance2.rsqrt()
        # Interpolated normals may turn from the viewer by a little at the silhouette.
        cosine = cosine.clamp(min=0)
        lamp = self.share * (exposed_for or self.distance) ** 2 / distance2 * cosine
        gloss = lamp * retroreflection(cosine, roughness)
        even = 1 - self.share
        # The even light's specular part is as colourless as the lamp's and is left in the albedo.
        slope = even + lamp * (1 - metallic) + gloss * metallic
        return Response(slope, gloss * DIELECTRIC_F0 * (1 - metallic))

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring the share back into its bounds after a step."""
        self.share.clamp_(0, 1)


def save_light(light: Headlight | None, path: Path) -> None:
    """Write `light` to `path`; None is light that shows the albedo wherever it falls, a share of 0."""
    if light is None:
        Light(headlight_share=0, distance=1).write(path)
    else:
        Light(headlight_share=float(light.share.detach()), distance=light.distance).write(path)


def load_light(path: Path) -> Headlight | None:
    """Read what `save_light` wrote; it wants no gradients. None if there is no headlight."""
    light = Light.read(path)
    return Headlight(light.distance, light.headlight_share).requires_grad_(False) if light.headlight_share else None


def retroreflection(cosine: Tensor, roughness: Tensor) -> Tensor:
    """Return pi times the GGX specular BRDF without Fresnel, back to where the light comes from, at n.v = `cosine`.

    pi D G / (4 n.l n.v) with alpha = roughness squared (glTF 2.0, appendix B.3); in relation to a white matt surface.
    """
    alpha2 = roughness**4
    cosine2 = cosine.square()
    distribution = alpha2 / (cosine2 * (alpha2 - 1) + 1).square()
    masking = (cosine + (alpha2 + (1 - alpha2) * cosine2).sqrt()).square()
    reflected: Tensor = distribution / masking
    return reflected


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return unit normals (V, 3) of a mesh: vertices (V, 3), faces (F, 3); faces count by their area."""
    corners = faces.long().unbind(1)
    a, b, c = (vertices[corner] for corner in corners)
    across = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for corner in corners:
        total = total.index_add(0, corner, across)
    return functional.normalize(total, dim=1)


def camera_centre(clip_from_world: Tensor) -> Tensor:
    """Return the point (3,) that a perspective projection (4, 4) looks from: where x, y and w vanish in clip space."""
    rows = clip_from_world[[0, 1, 3]]
    centre: Tensor = -torch.linalg.solve(rows[:, :3], rows[:, 3])
    return centre

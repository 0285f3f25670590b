"""How a surface point looks to a camera: light from all round and a lamp at the camera.

A photo taken with a flash is lit from the camera, so the light moves from photo to photo and no fixed colour on the
surface explains them all; a glossy surface shows its surroundings, which no fixed colour explains either.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from reconstruction.light import EnvironmentLight, PrefilteredLight, load_environment, save_environment
from reconstruction.response_kernel import Respond
from reconstruction.shading import DIELECTRIC_F0, Response, reflectance_pyramid, split_sum
from scan2twin.frames import Document

START_SHARE = 0.3  # of the lamp, where its gradient says most on whether there is one
ENVIRONMENT_FILE = "environment.hdr"
ENVIRONMENT_HEIGHT = 128  # pixels of environment.hdr: two for a texel of the cube map


class LightInfo(Document):
    """`light.json`: see `SceneLight`; `environment` tells whether environment.hdr lies beside it."""

    headlight_share: float
    distance: float
    environment: bool = False


@dataclass(frozen=True)
class ReadyLight:
    """A `SceneLight` as it stands, ready to light points."""

    share: Tensor
    distance: float
    environment: PrefilteredLight | None

    def response(
        self,
        normals: Tensor,
        to_camera: Tensor,
        roughness: Tensor,
        metallic: Tensor,
        occlusion: Tensor | None = None,
        exposed_for: float | None = None,
    ) -> Response:
        """Return the response of points with unit normals (N, 3), vectors to the camera (N, 3) and material (N, 1).

        `occlusion` (N, 1) is the share of the light from all round that reaches the point. `exposed_for` is the
        distance at which the lamp shows the albedo, instead of `distance`.

        The lamp: Lambert and Cook-Torrance with GGX and separable Smith masking (glTF 2.0, appendix B.3) at
        l = v = h, where Schlick's Fresnel is F0; its light falls off with the square of the distance.
        """
        if self.environment is not None and normals.device.type == "cpu" and normals.dtype == torch.float32:
            hidden = normals.new_empty(0, 1) if occlusion is None else occlusion
            pyramids = self.environment.diffuse_pyramid, self.environment.specular_pyramid
            slope, offset = Respond.apply(  # type: ignore[no-untyped-call]
                *(tensor.contiguous() for tensor in (normals, to_camera, roughness, metallic, hidden)),
                self.share,
                *(pyramid.texels for pyramid in pyramids),
                (exposed_for or self.distance) ** 2,
                DIELECTRIC_F0,
                reflectance_pyramid(normals.device),
                *pyramids,
            )
            return Response(slope, offset)
        return self.response_torch(normals, to_camera, roughness, metallic, occlusion, exposed_for)

    def response_torch(
        self,
        normals: Tensor,
        to_camera: Tensor,
        roughness: Tensor,
        metallic: Tensor,
        occlusion: Tensor | None = None,
        exposed_for: float | None = None,
    ) -> Response:
        """Return what `response` does, by torch operations alone: for any device, precision and light."""
        distance2 = to_camera.square().sum(dim=1, keepdim=True)
        to_camera = to_camera * distance2.rsqrt()
        # Interpolated normals may turn from the viewer by a little at the silhouette.
        cosine = (normals * to_camera).sum(dim=1, keepdim=True).clamp(min=0)
        lamp = self.share * (exposed_for or self.distance) ** 2 / distance2 * cosine
        gloss = lamp * retroreflection(cosine, roughness)
        slope, offset = lamp * (1 - metallic) + gloss * metallic, gloss * DIELECTRIC_F0 * (1 - metallic)
        rest = 1 - self.share if occlusion is None else (1 - self.share) * occlusion
        if self.environment is None:
            # The even light's specular part is as colourless as the lamp's and is left in the albedo.
            return Response(rest + slope, offset)
        around = split_sum(normals, to_camera, roughness, metallic, self.environment)
        return Response(rest * around.slope + slope, rest * around.offset + offset)


class SceneLight(nn.Module):
    """Light from all round and a small lamp at the camera.

    A matt surface that faces a camera at `distance` (unit-frame lengths) shows its albedo. `share` is the lamp's part
    of that light. The rest is even, or an environment of mean radiance 1, so that albedo means the same in both.
    """

    def __init__(
        self, distance: float, share: float = START_SHARE, environment: EnvironmentLight | None = None
    ) -> None:
        super().__init__()
        self.distance = distance
        self.share = nn.Parameter(torch.tensor(float(share)))
        self.environment = environment

    def ready(self) -> ReadyLight:
        """Return the light ready to shade with; once for each change of the light."""
        return ReadyLight(self.share, self.distance, None if self.environment is None else self.environment.prefilter())

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring the share back into its bounds after a step."""
        self.share.clamp_(0, 1)


def save_light(light: SceneLight | None, folder: Path) -> None:
    """Write light.json and, with an environment, environment.hdr; None shows the albedo from everywhere."""
    if light is None:
        LightInfo(headlight_share=0, distance=1).write(folder / "light.json")
        return
    info = LightInfo(
        headlight_share=float(light.share.detach()),
        distance=light.distance,
        environment=light.environment is not None,
    )
    info.write(folder / "light.json")
    if light.environment is not None:
        save_environment(folder / ENVIRONMENT_FILE, light.environment.to_equirectangular(ENVIRONMENT_HEIGHT))


def load_light(folder: Path) -> SceneLight | None:
    """Read what `save_light` wrote; it wants no gradients. None if the albedo is seen as it is.

    Raises:
        InputError: environment.hdr cannot be read.

    """
    info = LightInfo.read(folder / "light.json")
    if not (info.environment or info.headlight_share):
        return None
    environment = read_environment(folder / ENVIRONMENT_FILE) if info.environment else None
    return SceneLight(info.distance, info.headlight_share, environment).requires_grad_(False)


def read_environment(path: Path) -> EnvironmentLight:
    """Read an equirectangular .hdr image as light.

    Raises:
        InputError: it cannot be read.

    """
    environment = EnvironmentLight()
    environment.set_equirectangular(load_environment(path))
    return environment


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


def camera_centre(clip_from_world: Tensor) -> Tensor:
    """Return the point (3,) that a perspective projection (4, 4) looks from: where x, y and w vanish in clip space."""
    rows = clip_from_world[[0, 1, 3]]
    centre: Tensor = -torch.linalg.solve(rows[:, :3], rows[:, 3])
    return centre

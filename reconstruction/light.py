"""A learned environment and its prefiltered lookups: the light half of split-sum shading.

Karis 2013, "Real Shading in Unreal Engine 4": the light a surface mirrors is split into the environment blurred by the
material's GGX lobe, assuming view = normal = reflection, and a factor of the material alone (`reconstruction.shading`).
The blur of a cube map is linear, so each level is one matrix, made once: prefiltering costs a few small products, and
its gradient likewise. Directions are in the model's frame, +Y up; radiance is linear, RGB, relative.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from reconstruction.rasterizer.sampling import Pyramid, cube_direction, sample_levels, stack_levels
from scan2twin.errors import InputError

# Perceptual roughness of the specular levels above the environment itself, evenly spaced, and the sides of their faces
# in texels: a texel must be no wider than the lobe, which is 9 degrees across at roughness 1/4 and 37 at 1/2.
_SPECULAR_LEVELS = ((0.25, 16), (0.5, 8), (0.75, 8), (1.0, 8))
_DIFFUSE_SIZE = 8
_COARSEST = max(size for _, size in _SPECULAR_LEVELS)


@dataclass(frozen=True)
class PrefilteredLight:
    """An environment ready to shade with: `diffuse` (1, 6, n, n, 3) and `specular` levels (1, 6, n_k, n_k, 3)."""

    diffuse: Tensor
    specular: tuple[Tensor, ...]

    @cached_property
    def diffuse_pyramid(self) -> Pyramid:
        """`diffuse`, ready to be looked up."""
        return stack_levels([self.diffuse], "cube")

    @cached_property
    def specular_pyramid(self) -> Pyramid:
        """`specular`, ready to be looked up."""
        return stack_levels(self.specular, "cube")

    def irradiance(self, normals: Tensor) -> Tensor:
        """Mean radiance (N, 3) over the cosine lobe round unit normals (N, 3): irradiance divided by pi."""
        return self.diffuse_pyramid.sample(normals[None], None)[0]

    def reflected(self, directions: Tensor, roughness: Tensor) -> Tensor:
        """Mean radiance (N, 3) over the GGX lobe round mirror directions (N, 3) at perceptual roughness (N,)."""
        level = roughness * (len(self.specular) - 1)
        return self.specular_pyramid.sample(directions[None], level[None])[0]


class EnvironmentLight(nn.Module):
    """Learnable light from every direction: a cube map (6, N, N, 3) kept as its logarithm, so it stays positive.

    Only products of light and albedo show in photos; the mean radiance over the sphere and the channels is 1 here.
    """

    _share: Tensor  # of each texel in the mean over the sphere and the channels: (6, N, N, 1)

    def __init__(self, resolution: int = 32) -> None:
        """Start as even light. `resolution` is the side of a face in texels, a multiple of 16."""
        super().__init__()
        if resolution < _COARSEST or resolution % _COARSEST:
            raise ValueError(f"resolution: expected a multiple of {_COARSEST}, got {resolution}")
        self.log_radiance = nn.Parameter(torch.zeros(6, resolution, resolution, 3))
        angles = texel_solid_angles(resolution)[..., None]
        self.register_buffer("_share", torch.from_numpy(angles / (3 * angles.sum())).float(), persistent=False)

    @property
    def radiance(self) -> Tensor:
        """Radiance (6, N, N, 3), faces +x -x +y -y +z -z laid out as in OpenGL."""
        radiance = self.log_radiance.exp()
        return radiance / (radiance * self._share).sum()

    def prefilter(self) -> PrefilteredLight:
        """Blur the environment for shading; call once an iteration."""
        base = self.radiance
        sizes = {_DIFFUSE_SIZE, *(size for _, size in _SPECULAR_LEVELS)}
        shrunk = {size: _shrink(base, base.shape[1] // size) for size in sizes}
        specular = [_blur(shrunk[size], specular_weights(size, roughness)) for roughness, size in _SPECULAR_LEVELS]
        return PrefilteredLight(
            diffuse=_blur(shrunk[_DIFFUSE_SIZE], diffuse_weights(_DIFFUSE_SIZE)), specular=(base[None], *specular)
        )

    def neutrality_loss(self) -> Tensor:
        """Mean distance of each channel from grey, a scalar: a prior for white light, so that colour goes to albedo.

        Munkberg et al. 2022, section 4, L_light = 1/3 sum |mean(c) - c_i|, averaged over the environment.
        """
        radiance = self.radiance
        return (radiance - radiance.mean(dim=-1, keepdim=True)).abs().mean()

    def unevenness_loss(self) -> Tensor:
        """Mean squared logarithm of the radiance, a scalar: what no photo shows anything of stays at the mean of 1."""
        return self.radiance.log().square().mean()

    @torch.no_grad()
    def to_equirectangular(self, height: int) -> Tensor:
        """Unroll to (height, 2 * height, 3) linear radiance, row 0 at the top; see `equirectangular_directions`."""
        directions = torch.from_numpy(equirectangular_directions(height)).float()
        samples = sample_levels([self.radiance[None].cpu()], directions.reshape(1, -1, 3), None, "cube")
        return samples.reshape(height, 2 * height, 3)

    @torch.no_grad()
    def set_equirectangular(self, image: Tensor) -> None:
        """Take over linear radiance (H, W, 3) laid out as by `to_equirectangular`, of any size."""
        resolution = self.log_radiance.shape[1]
        # About two pixels a texel: the mean of larger images, so that no small bright lamp is missed.
        width = min(8 * resolution, image.shape[1])
        shrunk = cv2.resize(image.float().cpu().numpy(), (width, width // 2), interpolation=cv2.INTER_AREA)
        unrolled = torch.from_numpy(np.concatenate((shrunk[:, -1:], shrunk, shrunk[:, :1]), axis=1))
        directions = torch.from_numpy(cube_directions(2 * resolution)).float().reshape(-1, 3)
        u = torch.atan2(directions[:, 2], directions[:, 0]) / (2 * torch.pi) + 0.5
        v = 0.5 - torch.asin(directions[:, 1].clamp(-1, 1)) / torch.pi
        coordinates = torch.stack(((u * width + 1) / (width + 2), v), dim=1)
        fine = sample_levels([unrolled[None]], coordinates[None], None, "clamp")
        radiance = _shrink(fine.reshape(6, 2 * resolution, 2 * resolution, 3), 2)
        self.log_radiance.copy_(radiance.clamp_min(1e-6).log())


def save_environment(path: Path, image: Tensor) -> None:
    """Write linear radiance (H, W, 3) as Radiance RGBE (.hdr)."""
    bgr = image.detach().float().cpu().numpy()[..., ::-1]
    encoded, data = cv2.imencode(".hdr", np.ascontiguousarray(bgr))
    if not encoded:
        raise ValueError(f"image: cannot be encoded as Radiance HDR, shape {tuple(image.shape)}")
    path.write_bytes(data.tobytes())


def load_environment(path: Path) -> Tensor:
    """Read an equirectangular Radiance (.hdr) image: linear radiance (H, W, 3).

    Raises:
        InputError: the file is missing or cannot be read as an image.

    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image is None:
        raise InputError(f"{path.name}: not a readable image; expected an equirectangular Radiance .hdr file")
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).float()


def cube_directions(size: int) -> np.ndarray:
    """Unit directions (6, size, size, 3) float64 of the texel centres of a cube map."""
    centres = (np.arange(size) + 0.5) / size * 2 - 1
    s, t = np.meshgrid(centres, centres)
    faces = []
    for face in range(6):
        middle = cube_direction(face, 0.0, 0.0)
        along_s, along_t = cube_direction(face, 1.0, 0.0) - middle, cube_direction(face, 0.0, 1.0) - middle
        faces.append(middle + s[..., None] * along_s + t[..., None] * along_t)
    directions = np.stack(faces)
    unit: np.ndarray = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    return unit


def texel_solid_angles(size: int) -> np.ndarray:
    """Solid angles (6, size, size) in steradians of the texels of a cube map, by the midpoint rule."""
    centres = (np.arange(size) + 0.5) / size * 2 - 1
    s, t = np.meshgrid(centres, centres)
    angles = (2 / size) ** 2 / (1 + s * s + t * t) ** 1.5
    return np.broadcast_to(angles, (6, size, size))


def equirectangular_directions(height: int) -> np.ndarray:
    """Unit directions (height, 2 * height, 3) float64 of the pixels of an equirectangular image.

    The top row looks up (+Y), the middle column along +X, azimuth atan2(z, x) grows to the right: the convention of
    three.js and model-viewer.
    """
    elevation = (0.5 - (np.arange(height) + 0.5) / height) * np.pi
    azimuth = ((np.arange(2 * height) + 0.5) / (2 * height) - 0.5) * 2 * np.pi
    azimuth, elevation = np.meshgrid(azimuth, elevation)
    return np.stack(
        (np.cos(elevation) * np.cos(azimuth), np.sin(elevation), np.cos(elevation) * np.sin(azimuth)), axis=-1
    )


def _lobe_weights(size: int, lobe_of_cosine: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """Row-normalised weights (6 n², 6 n²) of every texel's light in the lobe round every texel's centre.

    Sources are split into parts of 2.8 degrees and less, so that sharp lobes are sampled well.
    """
    split = max(32 // size, 1)
    targets = cube_directions(size).reshape(-1, 3).astype(np.float32)
    sources = cube_directions(size * split).astype(np.float32)
    angles = texel_solid_angles(size * split).astype(np.float32)
    weights = np.zeros((len(targets), 6, size, size), np.float32)
    for row in range(split):
        for column in range(split):
            part = sources[:, row::split, column::split].reshape(-1, 3)
            # Not by BLAS, whose last bit may depend on where in memory its operands lie.
            cosines = np.clip(sum(np.multiply.outer(targets[:, k], part[:, k]) for k in range(3)), -1, 1)
            weights += (lobe_of_cosine(cosines) * angles[:, row::split, column::split].reshape(-1)).reshape(
                weights.shape
            )
    flat = weights.reshape(len(targets), -1)
    # The copy is aligned as torch aligns; NumPy's memory is not, and the last bit of products would depend on that.
    return torch.from_numpy(flat / flat.sum(axis=1, keepdims=True)).clone()


def _shrink(faces: Tensor, factor: int) -> Tensor:
    """Average factor × factor texels of faces (6, n, n, 3)."""
    return nn.functional.avg_pool2d(faces.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)


def _blur(faces: Tensor, weights: Tensor) -> Tensor:
    """Apply (6 n², 6 n²) weights to faces (6, n, n, 3): (1, 6, n, n, 3)."""
    # Colours in rows: with three columns instead BLAS takes six times as long.
    rows = faces.reshape(-1, 3).T.contiguous()
    return (rows @ weights.to(faces.device).T).T.reshape(1, *faces.shape)


@cache
def diffuse_weights(size: int) -> Tensor:
    """Weights (6 n², 6 n²) that blur a cube map by the cosine lobe: irradiance / pi."""
    return _lobe_weights(size, lambda cosine: np.maximum(cosine, 0))


@cache
def specular_weights(size: int, roughness: float) -> Tensor:
    """Weights (6 n², 6 n²) that blur a cube map by the GGX lobe at normal incidence (Karis 2013, listing 4).

    With view = normal = r and light l at cosine c = r.l, the half vector's cosine is sqrt((1 + c) / 2); light drawn by
    its normal distribution D and weighted by c has the density D(h) c, up to a constant.
    """
    alpha2 = roughness**4

    def lobe(cosine: np.ndarray) -> np.ndarray:
        half2 = (1 + cosine) / 2
        weight: np.ndarray = np.maximum(cosine, 0) / (half2 * (alpha2 - 1) + 1) ** 2
        return weight

    return _lobe_weights(size, lobe)

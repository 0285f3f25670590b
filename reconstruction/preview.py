"""`preview.png` and `turntable.mp4`: the model on a neutral floor with a soft shadow, as a product photo.

The floor's shadow is that of an evenly bright sky: for many directions of light the mesh is flattened onto the
floor along the light and rasterised; the mean of these sharp shadows is the soft one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from reconstruction.appearance import SceneLight
from reconstruction.bake import CPU, to_8bit
from reconstruction.color import linear_to_srgb, srgb_to_linear
from reconstruction.model import TexturedModel
from reconstruction.rasterizer import get_rasterizer
from reconstruction.render import STILL_SUPERSAMPLING, Renderer, View
from scan2twin.capture.models import Intrinsics
from scan2twin.progress import Progress

Floats = npt.NDArray[np.float64]

FIELD_OF_VIEW = np.radians(26.0)  # a short telephoto lens, as product photographers use: little distortion
ELEVATION = np.radians(18.0)  # of the camera above the horizon; above half the field of view, so all is floor
CANDIDATES, CANDIDATE_SIDE = 24, 160  # azimuths, and pixels of their pictures, that the best side is chosen from
FILL = 0.8  # share of the picture's width or height that the object takes
FRAMES_PER_SECOND = 24

SHADOW_SIDE = 384  # pixels of the shadow's map
SHADOW_LIGHTS = 64
SHADOW_STRENGTH = 0.6  # how much of the floor's light the sky gives; the rest is bounced and reaches everywhere
BACKDROP_SRGB = (0.94, 0.80)  # grey of the backdrop at the picture's middle and in its corners


class Studio:
    """A model set up to be photographed from any side; azimuths are radians round +Y, from +Z towards +X."""

    def __init__(self, model: TexturedModel, light: SceneLight | None = None) -> None:
        self._renderer = Renderer(model.mesh, model.material, light)
        self._vertices, _, faces = model.mesh.welded()
        reach = np.linalg.norm(self._vertices[:, (0, 2)], axis=1).max() + 1.5 * self._vertices[:, 1].max()
        self._shadow = floor_shadow(self._vertices, faces, reach)
        self._reach = reach

    def cameras(self, azimuths: Sequence[float], side: int) -> list[View]:
        """Place one camera for each azimuth, all at one distance, so that the object fits and sits in the middle."""
        middle = (self._vertices.min(axis=0) + self._vertices.max(axis=0)) / 2
        rotations = [camera_rotation(azimuth, ELEVATION) for azimuth in azimuths]
        seen = np.stack([(self._vertices - middle) @ rotation for rotation in rotations])  # (N, V, 3), camera axes
        slope = np.tan(FIELD_OF_VIEW / 2) * FILL
        distance = float((np.abs(seen[..., :2]).max(axis=2) / slope + seen[..., 2]).max())
        slopes = seen[..., 1] / (distance - seen[..., 2])
        focal = side / 2 / np.tan(FIELD_OF_VIEW / 2)
        # A shift of the lens, not a tilt, centres the object and keeps its upright edges upright.
        lift = focal * float(slopes.min() + slopes.max()) / 2
        intrinsics = Intrinsics(fx=focal, fy=focal, cx=side / 2, cy=side / 2 + lift)
        views = []
        for rotation in rotations:
            camera_to_world = np.eye(4)
            camera_to_world[:3, :3] = rotation
            camera_to_world[:3, 3] = middle + distance * rotation[:, 2]
            views.append(View("", camera_to_world, intrinsics, side, side))
        return views

    def best_side(self) -> float:
        """Return the azimuth from which there is most to see: the largest sum of steps in tone within the object.

        Faces, labels and openings win over backs; a wide side wins over a narrow one.
        """
        azimuths = np.linspace(0, 2 * np.pi, CANDIDATES, endpoint=False).tolist()
        detail = []
        for view in self.cameras(azimuths, CANDIDATE_SIDE):
            image = self._renderer.draw(view, supersampling=1)
            tone = linear_to_srgb(image[..., :3].clamp(0, 1)).mean(dim=2)
            inside = image[..., 3] > 0.999
            down = (tone.diff(dim=0).abs() * (inside[1:] & inside[:-1])).sum()
            across = (tone.diff(dim=1).abs() * (inside[:, 1:] & inside[:, :-1])).sum()
            detail.append(float(down + across))
        return float(azimuths[int(np.argmax(detail))])

    def photograph(self, view: View, supersampling: int) -> npt.NDArray[np.uint8]:
        """Return the picture (H, W, 3) uint8 sRGB of one view: the object, its shadow and the backdrop."""
        image = self._renderer.draw(view, supersampling)
        backdrop = torch.from_numpy(self._backdrop(view)).float()[..., None]
        composed = image[..., :3] + (1 - image[..., 3:]) * backdrop
        picture: npt.NDArray[np.uint8] = to_8bit(linear_to_srgb(composed)).numpy()
        return picture

    def _backdrop(self, view: View) -> Floats:
        """Return the linear grey (H, W) of floor and backdrop, with the shadow."""
        k = view.intrinsics
        x = (np.arange(view.width) + 0.5 - k.cx) / k.fx
        y = (k.cy - np.arange(view.height) - 0.5) / k.fy
        rays = np.stack([*np.meshgrid(x, y), np.full((view.height, view.width), -1.0)], axis=2)
        rays = rays @ view.camera_to_world[:3, :3].T
        eye = view.camera_to_world[:3, 3]
        down = rays[..., 1] < 0
        floor = eye + rays * (-eye[1] / np.where(down, rays[..., 1], -1))[..., None]
        pixel = (floor[..., (2, 0)] / self._reach + 1) / 2 * SHADOW_SIDE - 0.5
        shadow = map_coordinates(self._shadow, np.moveaxis(pixel, 2, 0), order=1, mode="constant")
        u, v = np.linspace(-1, 1, view.width), np.linspace(-1, 1, view.height)
        towards_corner = np.clip((u[None, :] ** 2 + v[:, None] ** 2) / 2, 0, 1)
        middle, corner = srgb_to_linear(torch.tensor(BACKDROP_SRGB, dtype=torch.float64)).tolist()
        grey: Floats = (middle + (corner - middle) * towards_corner) * (1 - SHADOW_STRENGTH * shadow * down)
        return grey


def floor_shadow(vertices: npt.NDArray[np.float32], faces: npt.NDArray[np.int32], reach: float) -> Floats:
    """Return the share of an evenly bright sky that the mesh hides from each point of the floor y = 0.

    The map (SHADOW_SIDE, SHADOW_SIDE) spans -reach..reach; rows run along z, columns along x.
    """
    rasterizer = get_rasterizer("numba", CPU)
    hidden = np.zeros((SHADOW_SIDE, SHADOW_SIDE))
    for light in sky_directions(SHADOW_LIGHTS):
        flat = vertices - vertices[:, 1:2] * (light / light[1])
        clip = np.zeros((1, len(vertices), 4), np.float32)
        clip[0, :, :2], clip[0, :, 3] = flat[:, (0, 2)] / reach, 1
        rast = rasterizer.rasterize(torch.from_numpy(clip), torch.from_numpy(faces), (SHADOW_SIDE, SHADOW_SIDE))
        hidden += rast[0, ..., 3].numpy() > 0
    blurred: Floats = gaussian_filter(hidden / SHADOW_LIGHTS, sigma=2.0)  # hides the steps between the lights
    return blurred


def sky_directions(count: int) -> Floats:
    """Return unit vectors (count, 3) of the upper half-space, spread evenly in the light they give a floor.

    A Fibonacci spiral over the unit disc, lifted to the hemisphere (Malley's method): density follows the cosine.
    """
    i = np.arange(count) + 0.5
    radius, angle = np.sqrt(i / count), np.pi * (3 - np.sqrt(5)) * i
    return np.stack([radius * np.cos(angle), np.sqrt(1 - radius**2), radius * np.sin(angle)], axis=1)


def camera_rotation(azimuth: float, elevation: float) -> Floats:
    """Return the rotation (3, 3), camera to world, of an upright OpenGL camera that looks at the origin."""
    back = np.array([
        np.sin(azimuth) * np.cos(elevation),
        np.sin(elevation),
        np.cos(azimuth) * np.cos(elevation),
    ])  # fmt: skip
    right = np.array([np.cos(azimuth), 0.0, -np.sin(azimuth)])
    return np.stack([right, np.cross(back, right), back], axis=1)


def write_preview(studio: Studio, azimuth: float, side: int, path: Path) -> None:
    """Write the view from `azimuth` as a PNG of side × side pixels."""
    (view,) = studio.cameras([azimuth], side)
    Image.fromarray(studio.photograph(view, STILL_SUPERSAMPLING)).save(path)


def write_turntable(studio: Studio, azimuth: float, frames: int, side: int, path: Path, progress: Progress) -> None:
    """Write one whole turn from `azimuth` as H.264 in MP4, which every browser plays (yuv420p, so `side` is even)."""
    azimuths = azimuth + np.linspace(0, 2 * np.pi, frames, endpoint=False)
    progress.start("turntable", frames)
    writer: Any = imageio.get_writer(
        path,
        format="FFMPEG",
        fps=FRAMES_PER_SECOND,
        codec="libx264",
        pixelformat="yuv420p",
        macro_block_size=2,
        ffmpeg_params=["-crf", "20", "-movflags", "+faststart"],
    )
    with writer:
        for view in studio.cameras(azimuths.tolist(), side):
            writer.append_data(studio.photograph(view, supersampling=1))
            progress.advance()

"""A small dataset with a known answer: a coloured ball seen from all sides, drawn by casting rays."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from scan2twin.capture.models import Intrinsics
from scan2twin.frames import Dataset, DatasetFrame

RADIUS = 0.4
CENTRE = np.array([0.05, -0.03, 0.02])
FOCAL_PER_SIDE = 1.4
SAMPLES = 4  # rays along each side of a pixel


def color_srgb(normals: np.ndarray) -> np.ndarray:
    """Smooth colours over the ball: (..., 3) unit normals to (..., 3) sRGB in [0, 1]."""
    return 0.5 + 0.3 * normals * np.array([1.0, 0.8, -0.9]) + 0.1 * np.sin(6 * normals[..., [1, 2, 0]])


def look_at(centre: np.ndarray) -> np.ndarray:
    """Camera (OpenGL axes) to unit frame, 4×4, from `centre` towards the origin."""
    back = centre / np.linalg.norm(centre)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    camera_to_unit = np.eye(4)
    camera_to_unit[:3] = np.stack([right, np.cross(back, right), back, centre], axis=1)
    return camera_to_unit


def camera_centres(count: int, distance: float = 2.0) -> np.ndarray:
    """Points all round the origin on a Fibonacci spiral, poles left out: (count, 3)."""
    k = np.arange(count)
    height = 0.85 - 1.7 * (k + 0.5) / count
    ring, turn = np.sqrt(1 - height**2), k * np.pi * (3 - 5**0.5)
    return distance * np.stack([ring * np.cos(turn), height, ring * np.sin(turn)], axis=1)


def ray_cast(
    camera_to_unit: np.ndarray, side: int, flash: float = 0.0, color_of: Callable[[np.ndarray], np.ndarray] = color_srgb
) -> tuple[np.ndarray, np.ndarray]:
    """Return sRGB (side, side, 3) and coverage (side, side), float, top row first.

    `flash` is the share of the light that comes from the camera; at the origin it shows the colours as they are.
    """
    pixel = (np.arange(side * SAMPLES) + 0.5) / SAMPLES - side / 2
    x, y = np.meshgrid(pixel, -pixel)
    directions = np.stack([x, y, np.full_like(x, -FOCAL_PER_SIDE * side)], axis=-1) @ camera_to_unit[:3, :3].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    to_ball = CENTRE - camera_to_unit[:3, 3]
    along = directions @ to_ball
    inside = along**2 - to_ball @ to_ball + RADIUS**2
    hit = inside > 0
    distance = along - np.sqrt(np.maximum(inside, 0))
    normals = (distance[..., None] * directions - to_ball) / RADIUS
    facing = np.clip(-(normals * directions).sum(axis=-1), 0, 1)
    lamp = facing * (camera_to_unit[:3, 3] @ camera_to_unit[:3, 3]) / np.maximum(distance, 1e-6) ** 2
    color = (color_of(normals) + 0.055) * (1 - flash + flash * lamp)[..., None] ** (1 / 2.4) - 0.055
    color = np.where(hit[..., None], color, 0.0)

    def pooled(values: np.ndarray) -> np.ndarray:
        return values.reshape(side, SAMPLES, side, SAMPLES, -1).mean(axis=(1, 3))

    coverage = pooled(hit.astype(float))[..., 0]
    return pooled(color) / np.maximum(coverage, 1e-6)[..., None], coverage


def write_dataset(
    folder: Path,
    centres: np.ndarray,
    side: int = 64,
    heldout_every: int = 6,
    exposure: np.ndarray | None = None,
    flash: float = 0.0,
    color_of: Callable[[np.ndarray], np.ndarray] = color_srgb,
) -> Dataset:
    """Write the dataset's images, masks and dataset.json; `exposure` multiplies each view's linear light."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    intrinsics = Intrinsics(fx=FOCAL_PER_SIDE * side, fy=FOCAL_PER_SIDE * side, cx=side / 2, cy=side / 2)
    frames = []
    for k, centre in enumerate(centres):
        camera_to_unit = look_at(centre)
        color, coverage = ray_cast(camera_to_unit, side, flash, color_of)
        if exposure is not None:  # sRGB is a power of light above its toe
            color = (color + 0.055) * exposure[k] ** (1 / 2.4) - 0.055
        name = f"{k:06d}.png"
        pixels = np.where(coverage[..., None] > 0, color, 0.6)  # whatever is behind the ball must not matter
        cv2.imwrite(str(folder / "images" / name), np.rint(pixels[..., ::-1].clip(0, 1) * 255).astype(np.uint8))
        cv2.imwrite(str(folder / "masks" / name), np.rint(coverage * 255).astype(np.uint8))
        frames.append(
            DatasetFrame(
                index=k,
                image=f"images/{name}",
                mask=f"masks/{name}",
                intrinsics=intrinsics,
                camera_to_unit=camera_to_unit.tolist(),
                split="heldout" if heldout_every and k % heldout_every == 3 else "train",
            )
        )
    dataset = Dataset(
        capture_id="ball",
        resolution=side,
        metric=False,
        unit_to_reference=np.eye(4).tolist(),
        object_size_unit=[1.0, 1.0, 1.0],
        frames=frames,
    )
    dataset.write(folder / "dataset.json")
    return dataset

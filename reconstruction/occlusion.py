"""Ambient occlusion: how much of the light from all round reaches a surface past the rest of the object."""

import numpy as np
import numpy.typing as npt
import torch

from reconstruction.bake import CPU
from reconstruction.rasterizer import get_rasterizer

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

DIRECTIONS = 64
SIDE = 256  # pixels of a depth map
BIAS = 2.0  # pixels of a depth map by which a point is lifted off its surface, so that it does not hide itself


def ambient_occlusion(vertices: Floats, normals: Floats, faces: Ints) -> Floats:
    """Return the share (V,) of an even sky over each vertex that it sees, weighted by the cosine; 1 is all of it.

    Args:
        vertices: (V, 3) of a closed surface, any frame.
        normals: (V, 3) unit, outward.
        faces: (F, 3).

    The mesh is drawn along parallel rays from many sides; a vertex sees a side where it is not behind what is drawn
    (Williams 1978, shadow maps).

    """
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    reach = float(np.linalg.norm(high - low)) / 2 * 1.01
    placed = (vertices - (low + high) / 2) / reach  # in the unit ball
    lifted = placed + normals * (BIAS * 2 / SIDE)
    rasterizer = get_rasterizer("numba", CPU)
    triangles = torch.from_numpy(faces)
    lit, whole = np.zeros(len(vertices)), np.zeros(len(vertices))
    for direction in spiral_directions(DIRECTIONS):
        across = np.cross(direction, np.eye(3)[np.abs(direction).argmin()])
        across /= np.linalg.norm(across)
        # Rows: x, y and depth, which grows away from the light.
        turn = np.stack([across, np.cross(direction, across), -direction]).astype(np.float32)
        clip = np.pad(placed @ turn.T, ((0, 0), (0, 1)), constant_values=1)
        drawn = rasterizer.rasterize(torch.from_numpy(clip)[None], triangles, (SIDE, SIDE))[0].numpy()
        depth = np.where(drawn[..., 3] > 0, drawn[..., 2], np.inf)
        seen = lifted @ turn.T
        column, row = np.clip(((seen[:, :2] + 1) / 2 * SIDE).astype(int), 0, SIDE - 1).T
        cosine = np.maximum(normals @ direction, 0)
        lit += cosine * (seen[:, 2] <= depth[row, column])
        whole += cosine
    return (lit / np.maximum(whole, 1e-9)).astype(np.float32)


def spiral_directions(count: int) -> npt.NDArray[np.float64]:
    """Return unit vectors (count, 3) spread evenly over the sphere (Fibonacci spiral)."""
    i = np.arange(count) + 0.5
    height, turn = 1 - 2 * i / count, i * np.pi * (3 - np.sqrt(5))
    ring = np.sqrt(1 - height**2)
    return np.stack([ring * np.cos(turn), height, ring * np.sin(turn)], axis=1)

"""Points of the surface that structure from motion found, each with the views that see it.

Outlines say nothing of hollows, and plain surfaces little; a point that three photos agree on lies where it lies.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reconstruction.cameras import to_clip
from reconstruction.rasterizer import Rasterizer

POINTS_FILE = "points.npz"
FARTHEST = 0.15  # unit-frame lengths; a point farther from the surface that it should be on is taken for a mistake


@dataclass(frozen=True)
class SparsePoints:
    """Points (N, 3) float32 in the unit frame, the weight (N,) of each, and which points each view (by row) sees."""

    xyz: Tensor
    weight: Tensor
    seen: tuple[Tensor, ...]  # (K,) int64 a view

    def to(self, device: torch.device) -> "SparsePoints":
        """Return the same points on `device`."""
        return SparsePoints(self.xyz.to(device), self.weight.to(device), tuple(seen.to(device) for seen in self.seen))

    def without(self, mistaken: Tensor) -> "SparsePoints":
        """Return the points as if no view saw those that are `mistaken`, (N,) bool."""
        return replace(self, seen=tuple(seen[~mistaken[seen]] for seen in self.seen))


def load_points(folder: Path, index: tuple[int, ...]) -> SparsePoints | None:
    """Read the points of a dataset for the views with frames' numbers `index`; None if it has none."""
    path = folder / POINTS_FILE
    if not path.is_file():
        return None
    with np.load(path) as arrays:
        seen_by, seen = arrays["seen_by"], arrays["seen"]
        xyz, error = arrays["xyz"], arrays["error_px"]
    rows = tuple(torch.from_numpy(seen[seen_by == frame].astype(np.int64)) for frame in index)
    return SparsePoints(torch.from_numpy(xyz.astype(np.float32)), torch.from_numpy(1 / (1 + error**2)).float(), rows)


def point_loss(
    points: SparsePoints,
    view: int,
    vertices: Tensor,
    faces: Tensor,
    clip_from_unit: Tensor,
    rasterizer: Rasterizer,
    resolution: int,
) -> Tensor:
    """Return the weighted sum, over the points that a view sees, of their distances to the surface drawn there.

    Distances are along the triangle's normal, unit-frame lengths; they move vertices (V, 3), not the camera
    clip_from_unit (4, 4). After Deng et al. 2022, "Depth-supervised NeRF", for a surface. The view is drawn at
    `resolution`; which part of a slanted triangle a pixel shows makes no difference.
    """
    chosen = points.seen[view]
    xyz, weight = points.xyz[chosen], points.weight[chosen]
    with torch.no_grad():
        camera = clip_from_unit.detach()
        rast = rasterizer.rasterize(to_clip(vertices.detach(), camera[None]), faces, (resolution, resolution))[0]
        clip = to_clip(xyz, camera[None])[0]
        pixel = ((clip[:, :2] / clip[:, 3:] + 1) * (resolution / 2)).floor().long().clamp(0, resolution - 1)
        drawn = rast[pixel[:, 1], pixel[:, 0]]
        hit = drawn[:, 3] > 0
        corner_weights = torch.stack([drawn[:, 0], drawn[:, 1], 1 - drawn[:, 0] - drawn[:, 1]], dim=1)[hit]
        triangle = faces[drawn[hit, 3].long() - 1].long()
        corners = vertices.detach()[triangle]
        normal = torch.nn.functional.normalize(
            torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), dim=1
        )
    place = (vertices[triangle] * corner_weights[..., None]).sum(dim=1)
    distance = ((xyz[hit] - place) * normal).sum(dim=1).abs()
    return (weight[hit] * distance * (distance.detach() < FARTHEST)).sum()

"""The shape that the optimisation starts from: the masks' visual hull, or a sphere."""

import numpy as np
import torch
from numpy.typing import NDArray

from reconstruction.cameras import to_clip
from reconstruction.data import Views
from reconstruction.free_space import free_distance
from reconstruction.rasterizer import Rasterizer
from reconstruction.surface import Surface
from reconstruction.tetgrid import Float32Array, Lattice
from reconstruction.visual_hull import hull_signed_distance, silhouette_distance, sphere_signed_distance
from scan2twin.errors import ReconstructionError

PROBE_CELLS = 32  # grid on which the hull's extent is found and its tolerance chosen
BOX_MARGIN = 0.1  # how far the object may reach beyond its box, as a share of the box's longest side
AIR_CELLS = 2  # cells between the shape and the lattice's border, which is held outside
# Shares of the views that may be wrong about a point. With exact masks and poses 0 is best, with a phone's 0 carves
# the object away; one of these is chosen by how well the hull explains the masks.
TOLERANCES = (0.0, 0.02, 0.05, 0.1, 0.15)
OPENING = 0.02  # share of the views that may be wrong about a point far from their outlines
STRAY = 0.015  # unit-frame lengths that a point may lie outside the hull; beyond, it is a mistake
AGREEMENT_SLACK = 0.015  # the coarse grid cuts thin parts by about this much; of equals the least tolerant is taken


class VisualHull:
    """The visual hull of the training views within the object's box.

    Attributes: `low` and `high` (3,) are the corners of its extent, unit frame; `tolerance` is the share of the views
    that was let be wrong, `far_tolerance` the share that was where it shows a point far from its outline; `points` are
    the views' points without those that lie outside.
    """

    def __init__(self, views: Views, object_size: NDArray[np.float64], rasterizer: Rasterizer) -> None:
        """Find the hull; object_size (3,) is the extent of the object's box, unit frame.

        Raises:
            ReconstructionError: the views agree on no point of space.

        """
        self._views = views
        side, distances, edges = views.resolution, [], []
        for k, image in enumerate(views.images.cpu().numpy()):
            window = rows, columns = views.window(k)
            # Images are stored bottom row first; the projections count pixels from the top.
            distances.append(silhouette_distance(np.ascontiguousarray(image[..., 3]), window)[::-1])
            (bottom, top, _), (left, right, _) = rows.indices(side), columns.indices(side)
            edges.append((left, side - top, right, side - bottom))
        self._distances, self._windows = np.stack(distances), np.array(edges, np.float64)
        self._pixel_from_unit, self._focal = views.pixel_from_unit(), views.focal()
        reach = object_size / 2 + BOX_MARGIN * object_size.max()
        lattice = Lattice(-reach, reach, float(2 * reach.max() / PROBE_CELLS))
        agreement = {
            tolerance: value
            for tolerance in TOLERANCES
            if (value := self._agreement(lattice, tolerance, tolerance, rasterizer)) is not None
        }
        if not agreement:
            raise ReconstructionError(
                "reconstruct: the masks agree on no point of space; check that the masks show the object and that the "
                "poses and the object's box are right"
            )
        enough = max(agreement.values()) - AGREEMENT_SLACK
        self.tolerance = self.far_tolerance = min(t for t, value in agreement.items() if value >= enough)
        if self.tolerance > OPENING:
            opened = self._agreement(lattice, self.tolerance, OPENING, rasterizer)
            # Masks with a piece missing would open what is closed, and fit the others less.
            if opened is not None and opened >= agreement[self.tolerance] - AGREEMENT_SLACK:
                self.far_tolerance = OPENING
        inside = lattice.positions[self.signed_distance(lattice.positions) < 0].astype(np.float64)
        self.low = np.maximum(inside.min(axis=0) - lattice.spacing, -reach)
        self.high = np.minimum(inside.max(axis=0) + lattice.spacing, reach)
        self.points = views.points
        if self.points is not None:
            stray = self.signed_distance(self.points.xyz.cpu().numpy()) > STRAY
            self.points = self.points.without(torch.from_numpy(stray).to(views.images.device))

    def signed_distance(self, points: Float32Array) -> Float32Array:
        """Return the signed distance (N,) at points (N, 3), unit-frame lengths, negative inside."""
        return self._signed_distance(points, self.tolerance, self.far_tolerance)

    def carved_distance(self, points: Float32Array) -> Float32Array:
        """Return the signed distance (N,) at points (N, 3) to the hull without what its views see through."""
        distance = self.signed_distance(points)
        if self.points is not None:
            inside = distance < 0
            free = free_distance(points[inside], self.points, self._views.centers())
            distance[inside] = np.maximum(distance[inside], free)
        return distance

    def _signed_distance(self, points: Float32Array, tolerance: float, far_tolerance: float) -> Float32Array:
        return hull_signed_distance(
            points, self._distances, self._pixel_from_unit, self._focal, tolerance, self._windows, far_tolerance
        )

    def _agreement(
        self, lattice: Lattice, tolerance: float, far_tolerance: float, rasterizer: Rasterizer
    ) -> float | None:
        """Return the median over the views of the overlap (IoU) of the hull's outline with the mask, if any is left."""
        sdf = self._signed_distance(lattice.positions, tolerance, far_tolerance)
        if not ((sdf < 0) & ~lattice.border).any():
            return None
        with torch.no_grad():
            mesh = Surface.from_distance(lattice, sdf, self._views.images.device).mesh()
            clip = to_clip(mesh.vertices, self._views.clip_from_camera @ self._views.camera_from_unit)
        overlaps = []
        for k in range(len(self._views)):
            rast = rasterizer.rasterize(clip[k : k + 1], mesh.faces, (self._views.resolution,) * 2)
            window = self._views.window(k)
            drawn, mask = (rast[0, ..., 3] > 0)[window], (self._views.images[k, ..., 3] >= 128)[window]
            overlaps.append(float((drawn & mask).sum() / (drawn | mask).sum().clamp(min=1)))
        return float(np.median(overlaps))


def box_with_air(
    low: NDArray[np.float64], high: NDArray[np.float64], spacing: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the corners (3,) of a lattice's box for a shape that reaches from `low` to `high`."""
    return low - AIR_CELLS * spacing, high + AIR_CELLS * spacing


def initial_surface(hull: VisualHull, spacing: float, start: str, device: torch.device) -> Surface:
    """Return the surface of the hull (start "visual_hull") or of a sphere inside its box ("sphere"), on `device`."""
    lattice = Lattice(*box_with_air(hull.low, hull.high, spacing), spacing)
    if start == "visual_hull":
        return Surface.from_distance(lattice, hull.carved_distance(lattice.positions), device)
    centre, radius = (hull.low + hull.high) / 2, float((hull.high - hull.low).min() / 2)
    distance = sphere_signed_distance(lattice.positions - centre.astype(np.float32), radius)
    return Surface.from_distance(lattice, distance, device)

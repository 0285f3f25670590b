"""Free space along the rays from cameras to the points that they see: what a visual hull cannot know of hollows.

Nothing opaque lies between a camera and a point of the surface that it sees. Rays are thin and points few, so a ray is
given a thickness: the distance from its point to the next ones on the surface, beyond which they speak for themselves.
"""

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from reconstruction.sparse_points import SparsePoints
from reconstruction.tetgrid import Float32Array

WITNESSES = 3  # points whose rays must pass a place for it to be free: a few points are wrong
WIDEST = 0.1  # unit-frame lengths, of a ray's radius
CENTRAL_DEG = 40.0  # from the mean of a point's rays: thick rays that graze the surface would reach below it


def free_distance(places: Float32Array, points: SparsePoints, centers: NDArray[np.float64]) -> Float32Array:
    """Return how deep places (M, 3) lie in space seen through, unit-frame lengths: (M,), positive where free.

    `centers` (B, 3) are the cameras' of the views that `points` knows.
    """
    chosen, first, direction = central_rays(points, centers)
    if len(chosen) <= WITNESSES:
        return np.full(len(places), -np.inf, np.float32)
    xyz = points.xyz.cpu().numpy()[chosen]
    spacing = np.asarray(cKDTree(xyz).query(xyz, k=WITNESSES + 1)[0])[:, -1]
    radius = np.minimum(spacing, WIDEST).astype(np.float32)
    return np.asarray(_free(places, xyz, radius, direction, first))


def central_rays(
    points: SparsePoints, centers: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], Float32Array]:
    """Return unit vectors (K, 3) from points to cameras that see them, those near the mean of each point's.

    Of the point with the number chosen[i], (N,), they are those from first[i] to first[i + 1], (N + 1,).
    """
    view = np.concatenate([np.full(len(seen), row) for row, seen in enumerate(points.seen)])
    point = np.concatenate([seen.cpu().numpy() for seen in points.seen])
    order = np.argsort(point, kind="stable")
    view, point = view[order], point[order]
    towards = centers[view] - points.xyz.cpu().numpy()[point]
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    mean = np.zeros((len(points.xyz), 3))
    np.add.at(mean, point, towards)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True).clip(min=1e-9)
    central = (towards * mean[point]).sum(axis=1) > np.cos(np.radians(CENTRAL_DEG))
    chosen, first = np.unique(point[central], return_index=True)
    return chosen, np.append(first, central.sum()), towards[central].astype(np.float32)


@njit(cache=True, parallel=True, nogil=True)
def _free(places, xyz, radius, direction, first):  # type: ignore[no-untyped-def]
    out = np.empty(len(places), np.float32)
    for m in prange(len(places)):
        x, y, z = places[m]
        top = np.full(WITNESSES, np.float32(-1e9))  # the largest values, ascending
        for i in range(len(xyz)):
            px, py, pz, r = x - xyz[i, 0], y - xyz[i, 1], z - xyz[i, 2], radius[i]
            distance2, value = px * px + py * py + pz * pz, np.float32(-1e9)
            for ray in range(first[i], first[i + 1]):
                along = px * direction[ray, 0] + py * direction[ray, 1] + pz * direction[ray, 2]
                # The ray's end is round, and touches the point from the front.
                behind = max(r - along, np.float32(0))
                value = max(value, r - np.sqrt(max(distance2 - along * along, np.float32(0)) + behind * behind))
            if value > top[0]:
                k = 0
                while k < WITNESSES - 1 and top[k + 1] < value:
                    top[k] = top[k + 1]
                    k += 1
                top[k] = value
        out[m] = top[0]
    return out

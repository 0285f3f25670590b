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


def free_distance(places: Float32Array, points: SparsePoints, centers: NDArray[np.float64]) -> Float32Array:
    """Return how deep places (M, 3) lie in space seen through, unit-frame lengths: (M,), positive where free.

    `centers` (B, 3) are the cameras' of the views that `points` knows.
    """
    xyz = points.xyz.cpu().numpy()
    if len(xyz) <= WITNESSES:
        return np.full(len(places), -np.inf, np.float32)
    spacing = cKDTree(xyz).query(xyz, k=WITNESSES + 1)[0][:, -1]
    radius = np.minimum(spacing, WIDEST).astype(np.float32)
    view = np.concatenate([np.full(len(seen), row) for row, seen in enumerate(points.seen)])
    point = np.concatenate([seen.cpu().numpy() for seen in points.seen])
    order = np.argsort(point, kind="stable")
    first = np.searchsorted(point[order], np.arange(len(xyz) + 1))
    return np.asarray(_free(places, xyz, radius, centers[view[order]].astype(np.float32), first))


@njit(cache=True, parallel=True, nogil=True)
def _free(places, xyz, radius, centers, first):  # type: ignore[no-untyped-def]
    """Rays `first[i]` to `first[i + 1]` end at point i and come from their `centers`."""
    out = np.empty(len(places), np.float32)
    for m in prange(len(places)):
        x, y, z = places[m]
        top = np.full(WITNESSES, np.float32(-1e9))  # the largest values, ascending
        for i in range(len(xyz)):
            px, py, pz, r = x - xyz[i, 0], y - xyz[i, 1], z - xyz[i, 2], radius[i]
            best = np.float32(-1e9)
            for k in range(first[i], first[i + 1]):
                dx, dy, dz = centers[k, 0] - xyz[i, 0], centers[k, 1] - xyz[i, 1], centers[k, 2] - xyz[i, 2]
                along = (px * dx + py * dy + pz * dz) / np.sqrt(dx * dx + dy * dy + dz * dz)
                # The ray's end is round, and touches the point from the front.
                behind = max(r - along, np.float32(0))
                across2 = max(px * px + py * py + pz * pz - along * along, np.float32(0))
                best = max(best, r - np.sqrt(across2 + behind * behind))
            if best > top[0]:
                k = 0
                while k < WITNESSES - 1 and top[k + 1] < best:
                    top[k] = top[k + 1]
                    k += 1
                top[k] = best
        out[m] = top[0]
    return out

"""The start of the geometry: a signed distance to the visual hull of the masks (Laurentini 1994), or a sphere.

Every view carries a signed distance to its silhouette, in pixels; times depth over focal length it is a
length in space. The hull's signed distance is the maximum over the views, and taking the (1 - disagree) quantile
instead lets a share of the views be wrong (bad mask, bad pose) without carving the object away. A wrong pose shifts an
outline by a little: views that show background far from any outline look through an opening, so fewer may be overruled.
"""

import cv2
import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from reconstruction.tetgrid import Float32Array

EVERYWHERE = (slice(None), slice(None))
FAR = 0.03  # unit-frame lengths from an outline, beyond which no error of a pose explains what a view shows


def silhouette_distance(mask: NDArray[np.uint8], window: tuple[slice, slice] = EVERYWHERE) -> Float32Array:
    """Return the signed distance (H, W) float32, pixels, to a mask's outline at 127.5; negative inside.

    Only the pixels in `window`, rows and columns, are known: where the object is cut by its edge there is no outline.
    """
    inside, outside = np.zeros_like(mask), np.zeros_like(mask)
    inside[window] = mask[window] >= 128
    outside[window] = mask[window] < 128
    # Distances go to the nearest pixel centre across the outline, which lies half a pixel nearer.
    to_outside, to_inside = _distance_to(outside), _distance_to(inside)
    return np.asarray(np.where(inside > 0, 0.5 - to_outside, to_inside - 0.5), np.float32)


def _distance_to(there: NDArray[np.uint8]) -> Float32Array:
    """Return each pixel's distance (H, W) to the nearest one of `there`, at most the sides' sum, pixels."""
    farthest = np.float32(sum(there.shape))
    near = np.minimum(cv2.distanceTransform(1 - there, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), farthest)
    # The last bit of OpenCV's result depends on where in memory the image lies; the square is a whole number.
    return np.asarray(np.sqrt(np.rint(near * near)), np.float32)


@njit(cache=True, parallel=True, nogil=True)
def _hull(points, distances, windows, pixel_from_unit, focal, rank_from_top, far_rank, unseen):  # type: ignore[no-untyped-def]
    n_views, height, width = distances.shape
    out = np.empty(len(points), np.float32)
    for i in prange(len(points)):
        x, y, z = points[i]
        top = np.full(rank_from_top + 1, np.float32(-1e9))  # the largest values, ascending
        seen = 0
        for view in range(n_views):
            m = pixel_from_unit[view]
            depth = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
            if depth <= 1e-6:
                continue
            u = (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) / depth - 0.5
            v = (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / depth - 0.5
            if u < windows[view, 0] or v < windows[view, 1] or u > windows[view, 2] - 1 or v > windows[view, 3] - 1:
                continue  # outside the photo a view knows nothing
            seen += 1
            c, r = min(int(u), width - 2), min(int(v), height - 2)
            fu, fv = u - c, v - r
            d = distances[view]
            pixels = (d[r, c] * (1 - fu) + d[r, c + 1] * fu) * (1 - fv) + (
                d[r + 1, c] * (1 - fu) + d[r + 1, c + 1] * fu
            ) * fv
            value = pixels * depth / focal[view]
            if value > top[0]:
                k = 0
                while k < rank_from_top and top[k + 1] < value:
                    top[k] = top[k + 1]
                    k += 1
                top[k] = value
        if seen == 0:
            out[i] = unseen
        else:
            # Of the views that see the point, the shares that may be wrong are the same.
            near = top[rank_from_top - rank_from_top * seen // n_views]
            out[i] = max(near, top[rank_from_top - far_rank * seen // n_views] - np.float32(FAR))
    return out


def hull_signed_distance(
    points: Float32Array,
    distances: Float32Array,
    pixel_from_unit: NDArray[np.float64],
    focal: NDArray[np.float64],
    disagree: float,
    windows: NDArray[np.float64] | None = None,
    far_disagree: float = 1.0,
) -> Float32Array:
    """Return an approximate signed distance (N,) to the visual hull, unit-frame lengths, negative inside.

    points (N, 3) in the unit frame; distances (B, H, W) from `silhouette_distance`; pixel_from_unit (B, 3, 4)
    projects the unit frame to pixels with positive depth in front; focal (B,) in pixels; `disagree` is the share of
    the views, 0 to 1, that may say "outside" about a point that is inside, and `far_disagree` the share that may say so
    of a point farther than `FAR` from their outlines; windows (B, 4) are the left, top, right and bottom edges of what
    each view knows, pixels (None: all of the image). Points that no view sees are outside.
    """
    rank_from_top = int(disagree * len(distances))
    far_rank = min(int(far_disagree * len(distances)), rank_from_top)
    if windows is None:
        windows = np.tile([0.0, 0.0, distances.shape[2], distances.shape[1]], (len(distances), 1))
    return np.asarray(
        _hull(points, distances, windows, pixel_from_unit, focal, rank_from_top, far_rank, np.float32(1.0))
    )


def sphere_signed_distance(points: Float32Array, radius: float) -> Float32Array:
    """Return the signed distance (N,) to a sphere round the unit frame's origin, unit-frame lengths."""
    return np.asarray(np.linalg.norm(points, axis=1) - radius, np.float32)

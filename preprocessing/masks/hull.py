"""The visual hull that most masks agree on (Laurentini 1994), and its silhouette in every view.

A voxel belongs to the hull if a large enough share of the views that see it say it is object, so a few wrong
masks neither carve the object away nor add to it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit, prange
from scipy import ndimage

from preprocessing.images import UInt8
from scan2twin.capture.models import Intrinsics

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


QUORUM = 0.4  # of all views: those missing from it count against a voxel, or what hardly any photo shows would stay


@dataclass(frozen=True)
class Grid:
    """Cubic voxels: `origin` is the centre of voxel (0, 0, 0), `step` the side of a voxel; reference frame."""

    origin: tuple[float, float, float]
    step: float
    shape: tuple[int, int, int]


def grid_over(low: Float64, high: Float64, resolution: int) -> Grid:
    """Return a grid that fills the box from `low` to `high` with `resolution` voxels along its longest side."""
    step = float((high - low).max()) / resolution
    nx, ny, nz = (max(1, round(float(extent) / step)) for extent in high - low)
    first = (low + high) / 2 - step * (np.array([nx, ny, nz]) - 1) / 2
    return Grid((float(first[0]), float(first[1]), float(first[2])), step, (nx, ny, nz))


def projection(camera_to_reference: Float64, intrinsics: Intrinsics) -> Float64:
    """Return the 3×4 matrix from the reference frame to (u, v, 1) · depth; depth is positive before the camera.

    `camera_to_reference` has OpenGL camera axes; (u, v) are pixels from the image's top-left corner.
    """
    k = intrinsics
    to_pixels = np.array([[k.fx, 0, -k.cx], [0, -k.fy, -k.cy], [0, 0, -1]])  # camera looks along -Z, +Y is up
    matrix: Float64 = to_pixels @ np.linalg.inv(camera_to_reference)[:3]
    return matrix


@njit(parallel=True, cache=True, nogil=True, fastmath=True)
def _votes(origin, step, shape, masks, known, projections, weights, quorum, out):  # type: ignore[no-untyped-def]
    views, height, width = masks.shape
    for x in prange(shape[0]):
        for y in range(shape[1]):
            for z in range(shape[2]):
                px, py, pz = origin[0] + x * step, origin[1] + y * step, origin[2] + z * step
                seen = np.float32(0)
                agreed = np.float32(0)
                for view in range(views):
                    m = projections[view]
                    depth = m[2, 0] * px + m[2, 1] * py + m[2, 2] * pz + m[2, 3]
                    if depth <= 0:
                        continue
                    u = int((m[0, 0] * px + m[0, 1] * py + m[0, 2] * pz + m[0, 3]) / depth)
                    v = int((m[1, 0] * px + m[1, 1] * py + m[1, 2] * pz + m[1, 3]) / depth)
                    if u < 0 or v < 0 or u >= width or v >= height or not known[view, v, u]:
                        continue
                    seen += weights[view]
                    if masks[view, v, u] >= 128:
                        agreed += weights[view]
                out[x, y, z] = agreed / max(seen, quorum)


def vote(grid: Grid, masks: UInt8, known: Bool, projections: Float64, weights: Float32) -> Float32:
    """Return for each voxel the share, by weight, of the views that see it whose mask has object there.

    masks (V, R, R) 255 = object; known (V, R, R) False where a view sees nothing (beyond its photo); projections
    (V, 3, 4) as of `projection`; weights (V,).
    """
    shares = np.empty(grid.shape, np.float32)
    quorum = np.float32(QUORUM * weights.sum())
    _votes(np.array(grid.origin), grid.step, np.array(grid.shape), masks, known, projections, weights, quorum, shares)
    return shares


def largest_body(occupied: Bool) -> Bool:
    """Keep the largest connected body of `occupied` voxels."""
    labels, count = ndimage.label(occupied, np.ones((3, 3, 3)))
    if count < 2:
        return occupied
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    body: Bool = labels == np.argmax(sizes)
    return body


def shell(grid: Grid, occupied: Bool) -> Float64:
    """Return the (N, 3) centres of the occupied voxels that have an empty neighbour; reference frame."""
    outer = occupied & ~ndimage.binary_erosion(occupied)
    return np.asarray(np.argwhere(outer) * grid.step + grid.origin, np.float64)


@njit(cache=True, nogil=True)
def _splat(centres, reach, projection, focal, out):  # type: ignore[no-untyped-def]
    height, width = out.shape
    m = projection
    for i in range(len(centres)):
        px, py, pz = centres[i]
        depth = m[2, 0] * px + m[2, 1] * py + m[2, 2] * pz + m[2, 3]
        if depth <= 0:
            continue
        u = (m[0, 0] * px + m[0, 1] * py + m[0, 2] * pz + m[0, 3]) / depth - 0.5
        v = (m[1, 0] * px + m[1, 1] * py + m[1, 2] * pz + m[1, 3]) / depth - 0.5
        radius = max(reach * focal / depth, 0.5)
        for row in range(max(0, int(np.ceil(v - radius))), min(height - 1, int(np.floor(v + radius))) + 1):
            for column in range(max(0, int(np.ceil(u - radius))), min(width - 1, int(np.floor(u + radius))) + 1):
                out[row, column] = 255


def draw(centres: Float64, step: float, projection: Float64, focal: float, resolution: int) -> UInt8:
    """Draw voxels of side `step` at `centres` (N, 3) into a view of `resolution`² pixels: 255 where one is, else 0.

    Each is drawn as an upright square as wide as the diagonal of a voxel's face, so that however the grid is turned
    no holes open between neighbours.
    """
    image = np.zeros((resolution, resolution), np.uint8)
    _splat(centres, step / np.sqrt(2), projection, focal, image)
    return image

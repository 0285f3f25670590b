"""What the finished mesh must be: one solid, or a few, without dust and without bubbles inside."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from scan2twin.errors import ReconstructionError

MIN_AREA_SHARE = 0.02  # a part with less of the surface than this is dust


def remove_floaters(
    vertices: NDArray[np.float32], faces: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.int32], int]:
    """Drop components of a closed mesh that are small or turned inside out (bubbles); return what is left.

    Returns vertices (V, 3), faces (F, 3) and the number of components dropped.

    Raises:
        ReconstructionError: nothing is left, or a coordinate is not finite.

    """
    if not np.isfinite(vertices).all():
        raise ReconstructionError("reconstruct: the mesh has vertices that are not finite; try another seed")
    start, end = faces[:, :2].T.ravel(), faces[:, 1:].T.ravel()  # two edges join a face's three corners
    count, component = connected_components(
        coo_array((np.ones(len(start)), (start, end)), shape=(len(vertices), len(vertices))), directed=False
    )
    corners = vertices[faces].astype(np.float64)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    of_face = component[faces[:, 0]]
    area = np.bincount(of_face, np.linalg.norm(normal, axis=1) / 2, minlength=count)
    volume = np.bincount(of_face, np.einsum("ij,ij->i", corners[:, 0], normal) / 6, minlength=count)
    kept = (area >= MIN_AREA_SHARE * area.sum()) & (volume > 0)
    if not kept.any():
        raise ReconstructionError("reconstruct: no closed surface is left; check masks, poses and the object's box")
    faces = faces[kept[of_face]]
    used, renumbered = np.unique(faces, return_inverse=True)
    return vertices[used], renumbered.reshape(faces.shape).astype(np.int32), int(count - kept.sum())

"""PLY with a colour at every vertex, for tools that measure and compare rather than render: CloudCompare, MeshLab."""

from pathlib import Path

import numpy as np
import trimesh

from reconstruction.lods import sample
from reconstruction.model import TexturedModel


def write_ply(model: TexturedModel, path: Path) -> None:
    """Write `model` as binary PLY: one closed surface, normals, and the texture's sRGB colour at every vertex."""
    mesh = model.mesh
    vertices, normals, faces = mesh.welded()
    colors = sample(model.material.base_color, mesh.uv.astype(np.float64))
    # A vertex on a seam has several places in the texture; they hold nearly the same colour.
    _, source = np.unique(mesh.source, return_inverse=True)
    sums = np.stack([np.bincount(source, colors[:, c], len(vertices)) for c in range(3)], axis=1)
    mean = sums / np.bincount(source, minlength=len(vertices))[:, None]
    geometry = trimesh.Trimesh(
        vertices, faces, vertex_normals=normals, vertex_colors=np.rint(mean * 255).astype(np.uint8), process=False
    )
    geometry.export(path, file_type="ply", vertex_normal=True)

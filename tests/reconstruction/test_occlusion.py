"""Ambient occlusion against shapes whose sky is known."""

import numpy as np
import pytest
import trimesh

from reconstruction.occlusion import ambient_occlusion


def occlusion_of(mesh: trimesh.Trimesh) -> np.ndarray:
    return ambient_occlusion(
        mesh.vertices.astype(np.float32), mesh.vertex_normals.astype(np.float32), mesh.faces.astype(np.int32)
    )


def test_a_ball_sees_the_whole_sky() -> None:
    assert occlusion_of(trimesh.creation.icosphere(subdivisions=3)).min() > 0.95


@pytest.mark.parametrize("depth", [0.5, 1.5])
def test_the_bottom_of_a_well_sees_its_mouth(depth: float) -> None:
    """From the middle of the floor, a mouth of radius r at height h is r² / (r² + h²) of a cosine-weighted sky."""
    outline = np.array([[0, -0.2], [1.0, -0.2], [1.0, depth], [0.8, depth], [0.8, 0], [0.4, 0], [0, 0]])
    well = trimesh.creation.revolve(outline, sections=64).subdivide()
    flat = trimesh.Trimesh(well.vertices[well.faces].reshape(-1, 3), np.arange(3 * len(well.faces)).reshape(-1, 3),
                           process=False)  # fmt: skip
    found = occlusion_of(flat)
    upward = flat.vertex_normals[:, 2] > 0.99
    middle = upward & (np.abs(flat.vertices[:, 2]) < 1e-6) & (np.linalg.norm(flat.vertices[:, :2], axis=1) < 0.15)
    assert middle.sum() > 3
    assert found[middle].mean() == pytest.approx(0.64 / (0.64 + depth**2), abs=0.07)
    rim = upward & (flat.vertices[:, 2] > depth - 1e-6)
    assert found[rim].min() > 0.95

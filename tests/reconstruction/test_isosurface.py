import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from reconstruction.isosurface import extract_topology, surface_vertices
from reconstruction.tetgrid import Lattice, narrow_band

HALF = np.full(3, 0.5)


def extract(lattice, sdf):
    band = narrow_band(lattice, sdf, rings=1)
    value = sdf[band.vertices]
    crossed, faces = extract_topology(value < 0, band)
    edges = torch.from_numpy(band.edges[crossed]).long()
    positions = torch.from_numpy(lattice.positions[band.vertices])
    vertices = surface_vertices(positions, torch.from_numpy(value), edges)
    return trimesh.Trimesh(vertices.numpy(), faces, process=False)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.02, 0.98))
def test_any_signs_give_a_closed_oriented_manifold(seed, share):
    """Every edge is shared by exactly two triangles that run along it in opposite directions."""
    lattice = Lattice(-HALF, HALF, 0.2)
    random = np.random.default_rng(seed)
    sdf = np.where(random.random(len(lattice)) < share, -1, 1) * random.uniform(0.1, 1, len(lattice))
    sdf[lattice.border] = 1.0
    if (sdf > 0).all():
        return
    faces = extract(lattice, sdf.astype(np.float32)).faces
    directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    assert len(np.unique(directed, axis=0)) == len(directed)
    forward = {tuple(edge) for edge in directed.tolist()}
    assert all((b, a) in forward for a, b in forward)


def test_a_sphere_has_the_volume_area_and_genus_of_a_sphere():
    lattice = Lattice(-HALF, HALF, 1 / 24)
    mesh = extract(lattice, (np.linalg.norm(lattice.positions, axis=1) - 0.4).astype(np.float32))
    assert mesh.is_watertight
    assert mesh.euler_number == 2
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.005)  # positive: normals point outward
    assert mesh.area == pytest.approx(4 * np.pi * 0.4**2, rel=0.005)
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.4).max() < 1e-3


def test_a_torus_has_one_hole():
    lattice = Lattice(-HALF, HALF, 1 / 24)
    x, y, z = lattice.positions.T
    sdf = np.hypot(np.hypot(x, z) - 0.28, y) - 0.12
    mesh = extract(lattice, sdf.astype(np.float32))
    assert mesh.is_watertight
    assert mesh.euler_number == 0


def test_a_plane_is_reproduced_exactly():
    lattice = Lattice(-HALF, HALF, 0.1)
    normal, offset = np.array([0.6, 0.0, 0.8]), 0.033
    band = narrow_band(lattice, (lattice.positions @ normal - offset).astype(np.float32), rings=1)
    sdf = (lattice.positions[band.vertices] @ normal - offset).astype(np.float32)
    crossed, _ = extract_topology(sdf < 0, band)
    edges = torch.from_numpy(band.edges[crossed]).long()
    vertices = surface_vertices(torch.from_numpy(lattice.positions[band.vertices]), torch.from_numpy(sdf), edges)
    np.testing.assert_allclose(vertices.numpy() @ normal, offset, atol=1e-6)


def test_gradients_agree_with_finite_differences():
    generator = torch.Generator().manual_seed(4)
    positions = torch.rand(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    sdf = torch.tensor([-0.5, 0.4, -0.2, 0.9, 0.3, -0.7], dtype=torch.float64, requires_grad=True)
    edges = torch.tensor([[0, 1], [2, 3], [4, 5], [0, 3]])
    assert torch.autograd.gradcheck(lambda p, s: surface_vertices(p, s, edges), (positions, sdf))

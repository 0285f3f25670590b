"""The geometry being optimised: signed distances and offsets on one narrow band of the tetrahedral grid."""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from reconstruction.isosurface import extract_topology, surface_vertices
from reconstruction.tetgrid import Band, Float32Array, Lattice, narrow_band

BAND_RINGS = 2  # edges on either side of the surface that the band reaches
# How far a grid vertex may move, in cells. The tetrahedra are 0.71 cells high (BCC), so two vertices that come
# towards each other by this much do not pass.
MAX_OFFSET = 0.3


class Mesh(NamedTuple):
    """An extracted surface.

    vertices (K, 3) float32, unit frame, differentiable; faces (F, 3) int32, counter-clockwise from outside; edges
    (K, 2) int64, the band edge that each vertex lies on.
    """

    vertices: torch.Tensor
    faces: torch.Tensor
    edges: torch.Tensor


class Surface(nn.Module):
    """Signed distances (in cells, negative inside) and vertex offsets on a narrow band of a lattice.

    The values off the band stay in `_dense`, so that the band can follow the surface (`follow`).
    """

    def __init__(self, lattice: Lattice, sdf: Float32Array) -> None:
        """Start from signed distances (M,), unit-frame lengths, at the lattice's points."""
        super().__init__()
        self.lattice = lattice
        self._dense = np.where(lattice.border, 2.0, np.clip(sdf / lattice.spacing, -3, 3)).astype(np.float32)
        self._dense_offset = np.zeros((len(lattice), 3), np.float32)
        self.sdf = nn.Parameter(torch.empty(0))
        self.offset = nn.Parameter(torch.empty(0))
        self._set_band()

    def _set_band(self) -> None:
        self.band: Band = narrow_band(self.lattice, self._dense, BAND_RINGS)
        vertices = self.band.vertices
        self.free = torch.from_numpy(self.band.free.astype(np.float32))
        self.rest = torch.from_numpy(self.lattice.positions[vertices])
        self.sdf.data = torch.from_numpy(self._dense[vertices])
        self.offset.data = torch.from_numpy(self._dense_offset[vertices])
        self._edges = torch.from_numpy(self.band.edges).long()

    def write_back(self) -> None:
        """Bring the dense values up to date with the band's."""
        self._dense[self.band.vertices] = self.sdf.detach().numpy()
        self._dense_offset[self.band.vertices] = self.offset.detach().numpy()

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Centre the band on the surface again, taking the optimiser's moments along."""
        self.write_back()
        before = self.band.vertices
        self._set_band()
        for parameter in (self.sdf, self.offset):
            for name, moment in optimizer.state[parameter].items():
                if name != "step":
                    dense = torch.zeros(len(self.lattice), *moment.shape[1:])
                    dense[before] = moment
                    optimizer.state[parameter][name] = dense[self.band.vertices]
            parameter.grad = None

    def refined(self, spacing: float, low: np.ndarray, high: np.ndarray) -> "Surface":
        """Return the same surface on a lattice of other `spacing` over the box from `low` to `high`."""
        self.write_back()
        lattice = Lattice(low, high, spacing)
        sdf = self.lattice.interpolate(self._dense, lattice.positions, outside=2.0)
        return Surface(lattice, sdf * self.lattice.spacing)

    def mesh(self) -> Mesh:
        """Extract the surface; its vertices carry gradients to `sdf` and `offset`."""
        crossed, faces = extract_topology(self.sdf.detach().numpy() < 0, self.band)
        edges = self._edges[torch.from_numpy(crossed)]
        positions = self.rest + self.lattice.spacing * MAX_OFFSET * torch.tanh(self.offset)
        return Mesh(surface_vertices(positions, self.sdf, edges), torch.from_numpy(faces), edges)

    def hold_rim(self) -> None:
        """Drop the gradients of the band's rim, whose signs must not change."""
        if self.sdf.grad is not None:
            self.sdf.grad *= self.free


def laplacian_loss(mesh: Mesh, spacing: float) -> torch.Tensor:
    """Mean squared distance, in cells, of the vertices to the mean of their neighbours (uniform Laplacian).

    Every edge of a closed mesh belongs to two faces that run along it in opposite directions, so adding each
    face's next corner to its corner visits every neighbour once.
    """
    vertices, faces = mesh.vertices, mesh.faces.long()
    start, end = faces.T.reshape(-1), faces[:, [1, 2, 0]].T.reshape(-1)
    total = torch.zeros_like(vertices).index_add(0, start, vertices[end])
    degree = torch.bincount(start, minlength=len(vertices)).clamp(min=1).unsqueeze(1)
    return ((total / degree - vertices) / spacing).square().sum(1).mean()


def sign_loss(sdf: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Cross-entropy between the two ends' signs on crossed edges (Munkberg et al. 2022, eq. 2): fewer crossings."""
    distance = sdf[edges]
    # The other end's sign as target: outside is 1. Ends differ in sign, so the target is 1 - own sign.
    target = (distance.detach().flip(1) >= 0).to(distance.dtype)
    return torch.nn.functional.binary_cross_entropy_with_logits(distance, target)

"""The geometry being optimised: signed distances and offsets on one narrow band of the tetrahedral grid."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import nn
from torch.nn import functional

from reconstruction.isosurface import extract_topology, surface_vertices
from reconstruction.tetgrid import (
    Band,
    Float32Array,
    Float64Array,
    Int32Array,
    Lattice,
    bending_matrix,
    narrow_band,
)

BAND_RINGS = 2  # edges on either side of the surface that the band reaches
# How far a grid vertex may move, in cells. The tetrahedra are 0.71 cells high (BCC), so two vertices that come
# towards each other by this much do not pass.
MAX_OFFSET = 0.3
CPU = torch.device("cpu")
FAR_CELLS = 3.0  # signed distances are clipped to this at the start, cells


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

    def __init__(
        self,
        lattice: Lattice,
        sdf: Float32Array,
        offset: Float32Array | None = None,
        device: torch.device = CPU,
    ) -> None:
        """Start from signed distances (M,), in cells, and offsets (M, 3) of the lattice's points."""
        super().__init__()
        self._device = device
        self.lattice = lattice
        self._dense = sdf.copy()
        self._dense_offset = np.zeros((len(lattice), 3), np.float32) if offset is None else offset.copy()
        self._set_band()

    @classmethod
    def from_distance(cls, lattice: Lattice, distance: Float32Array, device: torch.device = CPU) -> "Surface":
        """Start from signed distances (M,), unit-frame lengths; the lattice's border is held outside."""
        cells = np.clip(distance / np.float32(lattice.spacing), -FAR_CELLS, FAR_CELLS)
        return cls(lattice, np.where(lattice.border, np.float32(FAR_CELLS), cells), device=device)

    def _set_band(self) -> None:
        self.band: Band = narrow_band(self.lattice, self._dense, BAND_RINGS)
        vertices = self.band.vertices
        self._free = self._tensor(self.band.free.astype(np.float32))
        self._rest = self._tensor(self.lattice.positions[vertices])
        self._edges = self._tensor(self.band.edges).long()
        self._bending = _sparse(bending_matrix(self.lattice, vertices), self._device)
        self.sdf = nn.Parameter(self._tensor(self._dense[vertices]))
        self.offset = nn.Parameter(self._tensor(self._dense_offset[vertices]))

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    def state(self) -> dict[str, Any]:
        """Return all that `from_state` needs: what the band was made from, and the values on it since."""
        return {
            "low": self.lattice.low.tolist(),
            "high": self.lattice.high.tolist(),
            "spacing": self.lattice.spacing,
            "dense": [torch.from_numpy(self._dense), torch.from_numpy(self._dense_offset)],
            "band": [self.sdf.data, self.offset.data],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device = CPU) -> "Surface":
        """Rebuild a surface from its `state`."""
        lattice = Lattice(np.array(state["low"]), np.array(state["high"]), state["spacing"])
        sdf, offset = (values.numpy() for values in state["dense"])
        surface = cls(lattice, sdf, offset, device)
        surface.sdf.data, surface.offset.data = (values.to(device) for values in state["band"])
        return surface

    def _write_back(self) -> None:
        self._dense[self.band.vertices] = self.sdf.detach().cpu().numpy()
        self._dense_offset[self.band.vertices] = self.offset.detach().cpu().numpy()

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Centre the band on the surface again; `sdf` and `offset` are new parameters, also in the optimiser."""
        self._write_back()
        before, old = self.band.vertices, {id(self.sdf): "sdf", id(self.offset): "offset"}
        self._set_band()
        for group in optimizer.param_groups:
            for place, parameter in enumerate(group["params"]):
                if id(parameter) in old:
                    new = getattr(self, old[id(parameter)])
                    group["params"][place] = new
                    optimizer.state[new] = self._moved(optimizer.state.pop(parameter, {}), before)

    def _moved(self, moments: dict[str, torch.Tensor], before: Int32Array) -> dict[str, torch.Tensor]:
        """Return Adam's moments, kept for the lattice points `before`, for the band's points."""
        result = {}
        for name, moment in moments.items():
            if name == "step":
                result[name] = moment
                continue
            dense = moment.new_zeros(len(self.lattice), *moment.shape[1:])
            dense[self._tensor(before)] = moment
            result[name] = dense[self._tensor(self.band.vertices)]
            result[name][self._free == 0] = 0  # momentum must not carry the rim's signs over zero
        return result

    def refined(self, spacing: float, low: Float64Array, high: Float64Array) -> "Surface":
        """Return the same surface on a lattice of other `spacing` over the box from `low` to `high`."""
        self._write_back()
        lattice = Lattice(low, high, spacing)
        cells = self.lattice.interpolate(self._dense, lattice.positions, outside=FAR_CELLS)
        return Surface.from_distance(lattice, cells * np.float32(self.lattice.spacing), self._device)

    def mesh(self) -> Mesh:
        """Extract the surface; its vertices carry gradients to `sdf` and `offset`."""
        crossed, faces = extract_topology(self.sdf.detach().cpu().numpy() < 0, self.band)
        edges = self._edges.index_select(0, self._tensor(crossed))
        positions = self._rest + self.lattice.spacing * MAX_OFFSET * torch.tanh(self.offset)
        return Mesh(surface_vertices(positions, self.sdf, edges), self._tensor(faces), edges)

    def bending_loss(self) -> torch.Tensor:
        """Return how much signed distances and offsets bend along the grid's lines: see `bending_matrix`."""
        values = torch.cat([self.sdf[:, None], self.offset], dim=1)
        loss: torch.Tensor = _QuadraticForm.apply(values, self._bending)  # type: ignore[no-untyped-call]
        return loss

    def hold_rim(self) -> None:
        """Drop the gradients of the band's rim, whose signs must not change."""
        if self.sdf.grad is not None:
            self.sdf.grad *= self._free


def _sparse(matrix: csr_array, device: torch.device) -> torch.Tensor:
    rows, columns, values = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls its sparse matrices "beta"
        return torch.sparse_csr_tensor(rows, columns, values, matrix.shape, device=device)


class _QuadraticForm(torch.autograd.Function):
    """The sum over columns of v' K v for values (V, C) and a symmetric sparse matrix (V, V); the gradient is 2 K v."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        product = matrix @ values
        ctx.save_for_backward(product)
        return (values * product).sum()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (product,) = ctx.saved_tensors
        return 2 * grad * product, None


def sign_loss(sdf: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Cross-entropy between the two ends' signs on crossed edges (Munkberg et al. 2022, eq. 2): fewer crossings.

    The ends (K, 2) differ in sign, so each is held against a target of the other sign, and the cross-entropy of a
    logit d with it is log(1 + exp(|d|)).
    """
    return functional.softplus(sdf.index_select(0, edges.reshape(-1)).abs()).mean()

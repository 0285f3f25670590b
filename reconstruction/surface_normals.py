"""Normals of a mesh that is being optimised, and their tilt by the field's relief.

On the CPU by numba kernels with gradients written out, which pass over the faces or points once; the gathers and
scatters of torch, which serve other devices and are the reference, take several times as long. Sums are taken in the
order of the faces, so a run repeats bit for bit.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_ONE = np.float32(1)
_SHORTEST = np.float32(1e-12)  # as of functional.normalize: shorter vectors are not made longer than they can say


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return unit normals (V, 3) of a mesh: vertices (V, 3), faces (F, 3) int32; faces count by their area."""
    if vertices.device.type != "cpu" or vertices.dtype != torch.float32:
        return vertex_normals_torch(vertices, faces)
    normals: Tensor = _VertexNormals.apply(vertices.contiguous(), faces.contiguous())  # type: ignore[no-untyped-call]
    return normals


def vertex_normals_torch(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return what `vertex_normals` does, by torch operations alone."""
    corners = faces.long().unbind(1)
    a, b, c = (vertices[corner] for corner in corners)
    across = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for corner in corners:
        total = total.index_add(0, corner, across)
    return functional.normalize(total, dim=1)


def perturbed(normals: Tensor, offset: Tensor) -> Tensor:
    """Tilt normals (N, 3) of any length along `offset` (N, 3); returns unit vectors.

    The tangent of the angle is the length of the part of the offset that is square to the normal.
    """
    if normals.device.type != "cpu" or normals.dtype != torch.float32:
        return perturbed_torch(normals, offset)
    tilted: Tensor = _Perturb.apply(normals.contiguous(), offset.contiguous())  # type: ignore[no-untyped-call]
    return tilted


def perturbed_torch(normals: Tensor, offset: Tensor) -> Tensor:
    """Return what `perturbed` does, by torch operations alone."""
    normals = functional.normalize(normals, dim=1)
    return functional.normalize(normals + offset - normals * (normals * offset).sum(dim=1, keepdim=True), dim=1)


@njit(inline="always")
def _unit(x, y, z):  # type: ignore[no-untyped-def]
    """Direction of a vector, and the reciprocal of its length."""
    inverse = _ONE / max(np.sqrt(x * x + y * y + z * z), _SHORTEST)
    return x * inverse, y * inverse, z * inverse, inverse


@njit(inline="always")
def _through_unit(x, y, z, inverse, d_x, d_y, d_z):  # type: ignore[no-untyped-def]
    """Derivative by a vector of direction (x, y, z) and length 1 / inverse, given that by its direction."""
    along = x * d_x + y * d_y + z * d_z
    return (d_x - x * along) * inverse, (d_y - y * along) * inverse, (d_z - z * along) * inverse


@njit(cache=True, nogil=True)
def _sum_faces(vertices, faces, total):  # type: ignore[no-untyped-def]
    """Add each face's cross product to its vertices in `total` (V, 3)."""
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        px, py, pz = vertices[b, 0] - vertices[a, 0], vertices[b, 1] - vertices[a, 1], vertices[b, 2] - vertices[a, 2]
        qx, qy, qz = vertices[c, 0] - vertices[a, 0], vertices[c, 1] - vertices[a, 1], vertices[c, 2] - vertices[a, 2]
        x, y, z = py * qz - pz * qy, pz * qx - px * qz, px * qy - py * qx
        for k in range(3):
            v = faces[f, k]
            total[v, 0] += x
            total[v, 1] += y
            total[v, 2] += z


@njit(cache=True, nogil=True)
def _sum_faces_backward(vertices, faces, d_total, d_vertices):  # type: ignore[no-untyped-def]
    """Add to `d_vertices` (V, 3), given the derivative by the totals (V, 3)."""
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        px, py, pz = vertices[b, 0] - vertices[a, 0], vertices[b, 1] - vertices[a, 1], vertices[b, 2] - vertices[a, 2]
        qx, qy, qz = vertices[c, 0] - vertices[a, 0], vertices[c, 1] - vertices[a, 1], vertices[c, 2] - vertices[a, 2]
        x = d_total[a, 0] + d_total[b, 0] + d_total[c, 0]
        y = d_total[a, 1] + d_total[b, 1] + d_total[c, 1]
        z = d_total[a, 2] + d_total[b, 2] + d_total[c, 2]
        # d(p × q) · d = p · (q × d) = q · (d × p)
        bx, by, bz = qy * z - qz * y, qz * x - qx * z, qx * y - qy * x
        cx, cy, cz = y * pz - z * py, z * px - x * pz, x * py - y * px
        d_vertices[a, 0] -= bx + cx
        d_vertices[a, 1] -= by + cy
        d_vertices[a, 2] -= bz + cz
        d_vertices[b, 0] += bx
        d_vertices[b, 1] += by
        d_vertices[b, 2] += bz
        d_vertices[c, 0] += cx
        d_vertices[c, 1] += cy
        d_vertices[c, 2] += cz


@njit(cache=True, nogil=True)
def _normalize(total, normals):  # type: ignore[no-untyped-def]
    for i in range(len(total)):
        normals[i, 0], normals[i, 1], normals[i, 2], _ = _unit(total[i, 0], total[i, 1], total[i, 2])


@njit(cache=True, nogil=True)
def _normalize_backward(total, d_normals, d_total):  # type: ignore[no-untyped-def]
    for i in range(len(total)):
        x, y, z, inverse = _unit(total[i, 0], total[i, 1], total[i, 2])
        d_total[i, 0], d_total[i, 1], d_total[i, 2] = _through_unit(
            x, y, z, inverse, d_normals[i, 0], d_normals[i, 1], d_normals[i, 2]
        )


class _VertexNormals(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vertices: Tensor, faces: Tensor) -> Tensor:
        total, normals = torch.zeros_like(vertices), torch.empty_like(vertices)
        _sum_faces(vertices.detach().numpy(), faces.numpy(), total.numpy())
        _normalize(total.numpy(), normals.numpy())
        ctx.save_for_backward(vertices, faces, total)
        return normals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        vertices, faces, total = ctx.saved_tensors
        d_total, d_vertices = torch.empty_like(total), torch.zeros_like(vertices)
        _normalize_backward(total.numpy(), grads[0].contiguous().numpy(), d_total.numpy())
        _sum_faces_backward(vertices.detach().numpy(), faces.numpy(), d_total.numpy(), d_vertices.numpy())
        return d_vertices, None


@njit(cache=True, nogil=True)
def _perturb(normals, offset, tilted):  # type: ignore[no-untyped-def]
    for i in range(len(normals)):
        nx, ny, nz, _ = _unit(normals[i, 0], normals[i, 1], normals[i, 2])
        along = nx * offset[i, 0] + ny * offset[i, 1] + nz * offset[i, 2]
        tilted[i, 0], tilted[i, 1], tilted[i, 2], _ = _unit(
            nx + offset[i, 0] - nx * along, ny + offset[i, 1] - ny * along, nz + offset[i, 2] - nz * along
        )


@njit(cache=True, nogil=True)
def _perturb_backward(normals, offset, d_tilted, d_normals, d_offset):  # type: ignore[no-untyped-def]
    for i in range(len(normals)):
        nx, ny, nz, inverse = _unit(normals[i, 0], normals[i, 1], normals[i, 2])
        ox, oy, oz = offset[i, 0], offset[i, 1], offset[i, 2]
        along = nx * ox + ny * oy + nz * oz
        tx, ty, tz, shrunk = _unit(nx + ox - nx * along, ny + oy - ny * along, nz + oz - nz * along)
        x, y, z = _through_unit(tx, ty, tz, shrunk, d_tilted[i, 0], d_tilted[i, 1], d_tilted[i, 2])
        upward = nx * x + ny * y + nz * z
        d_offset[i, 0], d_offset[i, 1], d_offset[i, 2] = x - nx * upward, y - ny * upward, z - nz * upward
        rest = _ONE - along
        d_normals[i, 0], d_normals[i, 1], d_normals[i, 2] = _through_unit(
            nx, ny, nz, inverse, rest * x - ox * upward, rest * y - oy * upward, rest * z - oz * upward
        )


class _Perturb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, normals: Tensor, offset: Tensor) -> Tensor:
        tilted = torch.empty_like(normals)
        _perturb(normals.detach().numpy(), offset.detach().numpy(), tilted.numpy())
        ctx.save_for_backward(normals, offset)
        return tilted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        normals, offset = ctx.saved_tensors
        d_normals, d_offset = torch.empty_like(normals), torch.empty_like(offset)
        _perturb_backward(
            normals.detach().numpy(), offset.detach().numpy(), grads[0].contiguous().numpy(), d_normals.numpy(),
            d_offset.numpy(),
        )  # fmt: skip
        return d_normals, d_offset

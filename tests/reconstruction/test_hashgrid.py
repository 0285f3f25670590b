import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reconstruction.hashgrid import HashGrid, encode_torch

PRIMES = (1, 2_654_435_761, 805_459_861)


def reference(grid: HashGrid, points: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The encoding written out in float64 torch (Müller et al. 2022, §3, eqs. 1 and 4), slow and plain."""
    features = []
    for level, (scale, side) in enumerate(zip(grid.scales.tolist(), grid.sides.tolist(), strict=True)):
        scaled = points * scale
        cell = torch.clamp(scaled.detach().floor(), max=scale - 1)
        fraction = scaled - cell
        total = torch.zeros(len(points), 2, dtype=points.dtype)
        for corner in range(8):
            bits = torch.tensor([corner >> axis & 1 for axis in range(3)])
            c = (cell + bits).long()
            weight = torch.where(bits == 1, fraction, 1 - fraction).prod(dim=1)
            if side:
                slot = c[:, 0] + side * (c[:, 1] + side * c[:, 2])
            else:
                hashed = [(c[:, axis] * prime) & 0xFFFFFFFF for axis, prime in enumerate(PRIMES)]
                slot = (hashed[0] ^ hashed[1] ^ hashed[2]) % table.shape[1]
            total = total + weight[:, None] * table[level, slot]
        features.append(total)
    return torch.cat(features, dim=1)


@pytest.fixture(scope="module")
def grid():
    grid = HashGrid(levels=5, log2_entries=9, coarsest=4, finest=60, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        grid.table.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    assert grid.sides[0] > 0  # both ways to index are covered
    assert grid.sides[-1] == 0
    return grid


@pytest.fixture(scope="module")
def points():
    return torch.rand(300, 3, generator=torch.Generator().manual_seed(2))


def test_encoding_agrees_with_the_reference(grid, points):
    expected = reference(grid, points.double(), grid.table.detach().double())
    torch.testing.assert_close(grid(points).double(), expected, atol=2e-5, rtol=0)


def test_the_encoding_for_other_devices_is_the_kernels(grid, points):
    upstream = torch.randn(len(points), grid.features, generator=torch.Generator().manual_seed(3))
    beyond = torch.cat([points[2:], torch.tensor([[0.0, 1.0, 0.5], [1.2, -0.1, 1.0]])])
    found = []
    for encode in (grid, lambda p: encode_torch(p, grid.table, grid.scales, grid.sides)):
        p = beyond.clone().requires_grad_()
        encoded = encode(p)
        to_points, to_table = torch.autograd.grad((encoded * upstream).sum(), (p, grid.table))
        found.append((encoded, to_points[:-2], to_table))
    for kernels, plain in zip(*found, strict=True):
        torch.testing.assert_close(plain, kernels, atol=2e-3, rtol=1e-4)


def test_gradients_agree_with_the_reference(grid, points):
    upstream = torch.randn(len(points), grid.features, generator=torch.Generator().manual_seed(3))
    p, table = points.double().requires_grad_(), grid.table.detach().double().requires_grad_()
    expected = torch.autograd.grad((reference(grid, p, table) * upstream).sum(), (p, table))
    q = points.clone().requires_grad_()
    found = torch.autograd.grad((grid(q) * upstream).sum(), (q, grid.table))
    torch.testing.assert_close(found[0].double(), expected[0], atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(found[1].double(), expected[1], atol=1e-4, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-3, 4), min_size=3, max_size=3))
def test_points_off_the_cube_are_clamped_to_it(coordinates):
    grid = HashGrid(levels=3, log2_entries=8, coarsest=4, finest=20, generator=torch.Generator().manual_seed(0))
    point = torch.tensor([coordinates], dtype=torch.float32)
    torch.testing.assert_close(grid(point), grid(point.clamp(0, 1)), atol=0, rtol=0)


def test_features_are_continuous_across_cells(grid):
    border = torch.tensor([[0.5, 0.25, 0.75]])
    step = 1e-6
    torch.testing.assert_close(grid(border - step), grid(border + step), atol=1e-3, rtol=0)


def test_two_runs_are_equal_to_the_bit(grid, points):
    def gradient():
        return torch.autograd.grad(grid(points).square().sum(), grid.table)[0]

    assert np.array_equal(gradient().numpy(), gradient().numpy())

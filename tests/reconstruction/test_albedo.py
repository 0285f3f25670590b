"""The measure of base colours: blind to one factor a channel, and to nothing else."""

import numpy as np
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st

from reconstruction.albedo import albedo_psnr, scaled_psnr, textured_points
from reconstruction.atlas import unwrap

COLORS = np.random.default_rng(0).uniform(0.05, 0.4, (500, 3))


@given(st.tuples(*[st.floats(0.3, 2.0)] * 3))
def test_a_factor_a_channel_does_not_count(factors: tuple[float, float, float]) -> None:
    assert scaled_psnr(COLORS * factors, COLORS) > 90


def test_what_is_no_factor_counts() -> None:
    """A step of d in encoded value is -20 log10 d dB, whatever factor is chosen; here the factor is 1."""
    encoded = 1.055 * COLORS ** (1 / 2.4) - 0.055
    sign = np.where(np.arange(len(COLORS)) % 2 == 0, 1, -1)[:, None]
    off = ((encoded + 0.02 * sign + 0.055) / 1.055) ** 2.4
    assert scaled_psnr(off, COLORS) == pytest.approx(-20 * np.log10(0.02), abs=0.3)


def test_a_model_is_compared_where_it_is() -> None:
    box = trimesh.creation.box()
    mesh = unwrap(box.vertices.astype(np.float32), box.faces.astype(np.int32), 64)
    texture = np.random.default_rng(1).integers(40, 200, (8, 8, 3)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
    points, albedo = textured_points(mesh.vertices.astype(float), mesh.faces, mesh.uv.astype(float), texture, 2000)
    assert np.abs(points).max() == pytest.approx(0.5)
    assert albedo_psnr(mesh, texture, points, albedo) > 60
    assert albedo_psnr(mesh, np.roll(texture, 8, axis=0), points, albedo) < 20
    far = points.copy()
    far[::2] *= 1.5  # half of the points are nowhere near the model
    assert albedo_psnr(mesh, texture, far, np.where(np.arange(2000)[:, None] % 2 == 0, 0.5, albedo)) > 60

"""The sRGB transfer function against values of the standard, and its inverse."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reconstruction.color import linear_to_srgb, srgb_to_linear


@pytest.mark.parametrize(
    ("linear", "srgb"),
    [(0.0, 0.0), (0.0031308, 0.04045), (0.18, 0.461356), (0.214041, 0.5), (0.5, 0.735357), (1.0, 1.0)],
)
def test_known_values(linear: float, srgb: float) -> None:
    assert linear_to_srgb(torch.tensor(linear)).item() == pytest.approx(srgb, abs=2e-5)
    assert srgb_to_linear(torch.tensor(srgb)).item() == pytest.approx(linear, abs=2e-5)


@given(st.floats(0, 1, width=32))
def test_decoding_undoes_encoding(value: float) -> None:
    assert srgb_to_linear(linear_to_srgb(torch.tensor(value))).item() == pytest.approx(value, abs=1e-6)


def test_gradients_are_finite_everywhere() -> None:
    values = torch.tensor([-0.1, 0.0, 1e-8, 0.0031308, 0.5, 1.0], requires_grad=True)
    linear_to_srgb(values).sum().backward()
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()
    assert values.grad[1] == pytest.approx(12.92)

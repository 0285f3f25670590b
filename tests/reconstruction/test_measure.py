import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from reconstruction.color import linear_to_srgb, srgb_to_linear
from reconstruction.measure import comparison_picture, mean_figures, measure_view, psnr, ssim, standouts
from reconstruction.mesh_cleanup import remove_floaters
from reconstruction.view_renderer import expose
from scan2twin.errors import ReconstructionError


def view(color: float, covered: int) -> torch.Tensor:
    image = torch.zeros(10, 10, 4)
    image[:covered, :, :3], image[:covered, :, 3] = color, 1.0
    return image


def test_figures_of_a_view_are_those_worked_out_by_hand():
    figures = measure_view(view(0.5, 4), view(0.6, 5))
    assert figures.mask_iou == pytest.approx(0.8)
    assert figures.psnr == pytest.approx(-10 * np.log10((0.4 * 0.1**2) + 0.1 * 0.6**2), abs=1e-4)
    assert figures.psnr_foreground == pytest.approx(-10 * np.log10((0.8 * 0.1**2) + 0.2 * 0.6**2), abs=1e-4)


def ssim_by_windows(x, y, side=11):
    """The formula of Wang et al. 2004, window by window, in float64."""
    ramp = np.arange(side) - (side - 1) / 2
    weight = np.exp(-(ramp[:, None] ** 2 + ramp**2) / (2 * 1.5**2))
    weight /= weight.sum()
    found = []
    for row in range(x.shape[0] - side + 1):
        for column in range(x.shape[1] - side + 1):
            a, b = (image[row : row + side, column : column + side] for image in (x, y))
            mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
            var_a, var_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
            both = (weight * (a - mean_a) * (b - mean_b)).sum()
            found.append(
                (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
                / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
            )  # fmt: skip
    return np.mean(found)


def test_ssim_is_that_of_its_definition():
    random = np.random.default_rng(0)
    smooth = np.add.outer(np.linspace(0, 0.5, 20), np.linspace(0.4, 0, 24))
    x = smooth[..., None] + 0.1 * random.random((20, 24, 3))
    y = np.clip(x + 0.1 * random.normal(size=x.shape), 0, 1)
    expected = np.mean([ssim_by_windows(x[..., c], y[..., c]) for c in range(3)])
    assert ssim(torch.from_numpy(x).float(), torch.from_numpy(y).float()) == pytest.approx(expected, abs=1e-5)
    assert ssim(torch.from_numpy(x), torch.from_numpy(x)) == pytest.approx(1)
    # A picture smaller than the window has a smaller window, of odd width.
    expected = np.mean([ssim_by_windows(x[:8, :9, c], y[:8, :9, c], 7) for c in range(3)])
    assert ssim(torch.from_numpy(x[:8, :9]), torch.from_numpy(y[:8, :9])) == pytest.approx(expected, abs=1e-6)


def test_the_mean_of_no_views_is_unknown():
    one = measure_view(torch.full((12, 12, 4), 0.5), torch.full((12, 12, 4), 0.6))
    assert mean_figures([one, one])["psnr"] == pytest.approx(20, abs=1e-3)
    assert mean_figures([]) == {"psnr": None, "psnr_foreground": None, "ssim": None, "mask_iou": None}


def test_equal_images_have_a_finite_psnr():
    assert psnr(0.0) == 100.0


def test_the_picture_shows_photo_rendering_and_error_upright():
    photo = view(1.0, 3)  # the three bottom rows
    picture = comparison_picture(view(0.9, 3), photo)
    assert picture.shape == (10, 30, 3)
    assert (picture[7:, :10] == 255).all()
    assert (picture[7:, 10:20] == 230).all()
    assert (picture[7:, 20:] == 102).all()
    assert (picture[:7] == 0).all()


@settings(deadline=None)
@given(st.floats(0.15, 0.9), st.floats(0.5, 1.2))
def test_exposing_encoded_values_is_a_gain_on_light(srgb, gain):
    value, factor = torch.tensor([[srgb] * 3], dtype=torch.float64), torch.tensor([gain] * 3, dtype=torch.float64)
    expected = linear_to_srgb(srgb_to_linear(value) * factor)
    torch.testing.assert_close(expose(value, factor), expected, atol=2e-5, rtol=0)


def test_standouts_are_the_large_ones_only():
    values = np.array([1.0, 1.1, 0.9, 1.05, 0.95, 3.0, 0.1])
    assert standouts(values).tolist() == [5]
    assert standouts(np.full(9, 0.3)).tolist() == []


def solid(*parts):
    mesh = trimesh.util.concatenate(parts)
    return mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32)


def test_dust_and_bubbles_are_removed():
    body = trimesh.creation.icosphere(subdivisions=3, radius=1.0)
    dust = trimesh.creation.icosphere(subdivisions=1, radius=0.02).apply_translation([2, 0, 0])
    bubble = trimesh.creation.icosphere(subdivisions=2, radius=0.5)
    bubble.invert()
    vertices, faces, dropped = remove_floaters(*solid(dust, bubble, body))
    assert dropped == 2
    assert len(vertices) == len(body.vertices)
    left = trimesh.Trimesh(vertices, faces, process=False)
    assert left.is_watertight
    assert left.volume == pytest.approx(body.volume, rel=1e-5)


def test_two_large_parts_both_stay():
    parts = [trimesh.creation.box([1, 1, 1]).apply_translation([x, 0, 0]) for x in (0, 3)]
    _, faces, dropped = remove_floaters(*solid(*parts))
    assert dropped == 0
    assert len(faces) == 24


def test_a_mesh_turned_inside_out_or_not_finite_is_refused():
    box = trimesh.creation.box([1, 1, 1])
    box.invert()
    vertices, faces = solid(box)
    with pytest.raises(ReconstructionError, match="no closed surface is left"):
        remove_floaters(vertices, faces)
    vertices[0, 0] = np.nan
    with pytest.raises(ReconstructionError, match="not finite"):
        remove_floaters(vertices, faces)

"""Split-sum shading against the integral it approximates, and its limits."""

import math

import numpy as np
import pytest
import torch

from reconstruction.light import EnvironmentLight, PrefilteredLight
from reconstruction.shading import reflectance_table, specular_reflectance, split_sum


def brute_force_reflectance(cos_view: float, roughness: float) -> tuple[float, float]:
    """Scale and bias of F0 by a dense sum over light directions, from the BRDF as glTF 2.0 appendix B states it."""
    alpha2 = roughness**4
    polar = (np.arange(1500) + 0.5) / 1500 * np.pi / 2
    azimuth = (np.arange(600) + 0.5) / 600 * np.pi
    polar, azimuth = np.meshgrid(polar, azimuth, indexing="ij")
    light = np.stack((np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)), axis=-1)
    view = np.array([math.sqrt(1 - cos_view**2), 0.0, cos_view])
    half = light + view
    half /= np.linalg.norm(half, axis=-1, keepdims=True)
    nl, nh, vh = light[..., 2], half[..., 2], half @ view
    distribution = alpha2 / (np.pi * (nh**2 * (alpha2 - 1) + 1) ** 2)
    masking = 1.0
    for cosine in (nl, cos_view):
        masking = masking * 2 * cosine / (cosine + np.sqrt(alpha2 + (1 - alpha2) * cosine**2))
    brdf = distribution * masking / (4 * nl * cos_view)
    solid_angle = np.sin(polar) * (np.pi / 2 / 1500) * (np.pi / 600) * 2
    fresnel = (1 - vh) ** 5
    energy = brdf * nl * solid_angle
    return float((energy * (1 - fresnel)).sum()), float((energy * fresnel).sum())


@pytest.mark.parametrize("roughness", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("cos_view", [0.2, 0.6, 0.95])
def test_specular_reflectance_agrees_with_brute_force(cos_view: float, roughness: float) -> None:
    expected = brute_force_reflectance(cos_view, roughness)
    obtained = specular_reflectance(np.array([cos_view]), roughness)[0]
    np.testing.assert_allclose(obtained, expected, atol=0.01)


def test_reflectance_never_creates_energy() -> None:
    total = reflectance_table().sum(dim=-1)
    assert (total <= 1.0 + 1e-4).all()
    assert (reflectance_table() >= 0).all()
    # A nearly smooth mirror keeps nearly all of it.
    assert (total[0, 1, 4:] > 0.99).all()


def shade(
    normals: torch.Tensor,
    views: torch.Tensor,
    albedo: torch.Tensor,
    roughness: torch.Tensor,
    metallic: torch.Tensor,
    light: PrefilteredLight,
) -> torch.Tensor:
    response = split_sum(normals, views, roughness, metallic, light)
    return albedo * response.slope + response.offset


def points(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit normals and view directions (count, 3) that see the front."""
    generator = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    views = torch.nn.functional.normalize(normals + 0.8 * torch.randn(count, 3, generator=generator), dim=1)
    front = (normals * views).sum(dim=1) > 0.05
    return normals[front], views[front]


def test_white_furnace_shows_no_object() -> None:
    # A white dielectric in even white light: what is not mirrored is scattered, so nothing may be lost or gained but
    # what the base's share of F0's energy costs.
    normals, views = points(500)
    light = EnvironmentLight(16).prefilter()
    white, one = torch.ones(len(normals), 3), torch.ones(len(normals), 1)
    for roughness in (0.1, 0.5, 1.0):
        dielectric = shade(normals, views, white, roughness * one, 0 * one, light)
        torch.testing.assert_close(dielectric, white, atol=1e-4, rtol=0)
        metal = shade(normals, views, white, roughness * one, one, light)
        assert (metal <= 1 + 1e-4).all()
    assert (shade(normals, views, white, 0.05 * one, one, light) > 0.98).all()


def test_metal_mirrors_in_its_own_colour_and_has_no_base() -> None:
    normals, _ = points(300)
    light = EnvironmentLight(16).prefilter()
    one = torch.ones(len(normals), 1)
    red = torch.tensor([0.8, 0.0, 0.0]).expand(len(normals), 3)
    head_on = shade(normals, normals, red, 0.3 * one, one, light)
    assert (head_on[:, 1:] < 0.01).all()
    assert (head_on[:, 0] > 0.7).all()


def test_a_rough_surface_faces_its_lamp_and_a_smooth_one_mirrors_it() -> None:
    light = EnvironmentLight(32)
    with torch.no_grad():
        light.log_radiance[2, 14:18, 14:18] = math.log(1e4)  # a lamp straight above
    prefiltered = light.prefilter()
    up, side = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    between = torch.nn.functional.normalize(up + side, dim=1)
    grey, one = torch.full((1, 3), 0.5), torch.ones(1, 1)

    def brightness(normal: torch.Tensor, roughness: float) -> float:
        return float(shade(normal, side, grey, roughness * one, one, prefiltered).mean().detach())

    assert brightness(between, 0.1) > 5 * brightness(between, 0.7)
    base = [
        float(shade(normal, between, grey, one, 0 * one, prefiltered).mean().detach())
        for normal in (up, between, side, -up)
    ]
    assert base == sorted(base, reverse=True)


def test_gradients_agree_with_finite_differences() -> None:
    normals, views = points(40)
    light = EnvironmentLight(16)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        light.log_radiance += 0.3 * torch.randn(light.log_radiance.shape, generator=generator)
    prefiltered = light.prefilter()
    count = len(normals)
    inputs = [
        normals,
        views,
        torch.rand(count, 3, generator=generator),
        0.1 + 0.8 * torch.rand(count, 1, generator=generator),
        torch.rand(count, 1, generator=generator),
    ]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    grads = torch.autograd.grad(shade(*inputs, prefiltered).sum(), inputs)
    for index in range(len(inputs)):
        step = torch.randn(inputs[index].shape, generator=generator) * 1e-3
        ahead, behind = ([tensor.detach() for tensor in inputs] for _ in range(2))
        ahead[index], behind[index] = ahead[index] + step, behind[index] - step
        difference = (shade(*ahead, prefiltered) - shade(*behind, prefiltered)).double().sum(dim=1) / 2
        obtained = (grads[index] * step).sum(dim=1)
        close = (obtained - difference).abs() < 0.05 * difference.abs() + 2e-5
        assert close.double().mean() > 0.85  # some straddle a texel centre, where a bilinear slope jumps

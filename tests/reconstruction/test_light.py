"""The environment light against brute-force integration, and its exchange as an HDR image."""

from pathlib import Path

import numpy as np
import pytest
import torch

from reconstruction.light import (
    EnvironmentLight,
    cube_directions,
    equirectangular_directions,
    load_environment,
    save_environment,
    texel_solid_angles,
)
from scan2twin.errors import InputError


def smooth_radiance(directions: np.ndarray) -> np.ndarray:
    """A coloured environment (..., 3) of mean 1 with a soft lamp and a bluish sky, defined for every direction."""
    lamp = np.exp(8 * (directions @ np.array([0.6, 0.64, 0.48]) - 1))
    sky = 0.5 + 0.5 * directions[..., 1]
    # exp(k (c - 1)) has the mean (1 - exp(-2k)) / 2k over the sphere, the sky 1/2.
    mean = (9 * (1 - np.exp(-16)) / 16 + 1.1 / 2 + 0.5) / 3
    return np.stack((4 * lamp + 0.2, 3 * lamp + 0.3 * sky + 0.2, 2 * lamp + 0.8 * sky + 0.1), axis=-1) / mean


def lit(resolution: int) -> EnvironmentLight:
    light = EnvironmentLight(resolution)
    with torch.no_grad():
        light.log_radiance.copy_(torch.from_numpy(smooth_radiance(cube_directions(resolution))).log())
    return light


def directions_on_a_sphere(count: int) -> torch.Tensor:
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(points, dim=1)


def uniform_directions(count: int) -> np.ndarray:
    """Directions (count, 3) spread evenly over the sphere: a spiral whose heights are uniform."""
    index = np.arange(count) + 0.5
    y, azimuth = 1 - 2 * index / count, index * np.pi * (3 - np.sqrt(5))
    ring = np.sqrt(1 - y * y)
    return np.stack((ring * np.cos(azimuth), y, ring * np.sin(azimuth)), axis=-1)


def test_texels_of_a_cube_map_fill_the_sphere() -> None:
    assert texel_solid_angles(16).sum() == pytest.approx(4 * np.pi, rel=1e-3)


def test_the_mean_radiance_is_one() -> None:
    light = lit(16)
    with torch.no_grad():
        light.log_radiance += 0.7
    mean = (light.radiance.detach().numpy() * texel_solid_angles(16)[..., None]).sum() / (3 * 4 * np.pi)
    assert mean == pytest.approx(1, rel=1e-3)


def test_even_light_stays_even() -> None:
    prefiltered = EnvironmentLight(16).prefilter()
    directions = directions_on_a_sphere(200)
    roughness = torch.linspace(0, 1, 200)
    expected = torch.full((200, 3), 1.0)
    torch.testing.assert_close(prefiltered.irradiance(directions), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(prefiltered.reflected(directions, roughness), expected, atol=1e-5, rtol=0)


def test_irradiance_agrees_with_brute_force() -> None:
    normals = directions_on_a_sphere(50)
    incoming = uniform_directions(20_000)
    cosine = np.maximum(normals.double().numpy() @ incoming.T, 0)
    expected = cosine @ smooth_radiance(incoming) / cosine.sum(axis=1, keepdims=True)
    obtained = lit(32).prefilter().irradiance(normals)
    np.testing.assert_allclose(obtained.detach().numpy(), expected, rtol=0.05)


@pytest.mark.parametrize("roughness", [0.25, 0.5, 0.75, 1.0])
def test_reflected_light_agrees_with_brute_force_importance_sampling(roughness: float) -> None:
    # Karis 2013, listing 4, as published: half vectors by the GGX distribution, weighted by n.l, in float64.
    mirrors = directions_on_a_sphere(50).double().numpy()
    generator = np.random.default_rng(0)
    height, azimuth = generator.random(4000), generator.random(4000) * 2 * np.pi
    alpha = roughness**2
    cosine = np.sqrt((1 - height) / (1 + (alpha**2 - 1) * height))
    sine = np.sqrt(1 - cosine**2)
    expected = []
    for mirror in mirrors:
        tangent = np.cross(mirror, [0.0, 1.0, 0.0] if abs(mirror[1]) < 0.9 else [1.0, 0.0, 0.0])
        tangent /= np.linalg.norm(tangent)
        local = np.stack((sine * np.cos(azimuth), sine * np.sin(azimuth), cosine), axis=-1)
        half = local @ np.stack((tangent, np.cross(mirror, tangent), mirror))
        light = 2 * (half @ mirror)[:, None] * half - mirror
        weight = np.maximum(light @ mirror, 0)
        expected.append(weight @ smooth_radiance(light) / weight.sum())
    obtained = lit(32).prefilter().reflected(torch.from_numpy(mirrors).float(), torch.full((50,), roughness))
    np.testing.assert_allclose(obtained.detach().numpy(), np.array(expected), rtol=0.1)
    assert np.abs(obtained.detach().numpy() / np.array(expected) - 1).mean() < 0.03


def test_a_mirror_sees_the_environment_itself() -> None:
    directions = directions_on_a_sphere(100)
    obtained = lit(32).prefilter().reflected(directions, torch.zeros(100))
    np.testing.assert_allclose(obtained.detach().numpy(), smooth_radiance(directions.double().numpy()), rtol=0.06)


def test_gradients_reach_the_environment_from_every_lookup() -> None:
    light = lit(16)
    weight = torch.randn(6, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    directions, roughness = directions_on_a_sphere(64), torch.linspace(0, 1, 64)

    def loss() -> torch.Tensor:
        prefiltered = light.prefilter()
        return (prefiltered.irradiance(directions).square() + prefiltered.reflected(directions, roughness)).sum()

    (grad,) = torch.autograd.grad(loss(), light.log_radiance)
    with torch.no_grad():
        light.log_radiance += 1e-3 * weight
        ahead = loss().double()
        light.log_radiance -= 2e-3 * weight
        behind = loss().double()
    assert float((grad * weight).sum()) == pytest.approx(float(ahead - behind) / 2e-3, rel=5e-3)


def test_neutrality_loss_is_zero_for_grey_light_only() -> None:
    light = EnvironmentLight(16)
    assert float(light.neutrality_loss().detach()) == 0
    with torch.no_grad():
        light.log_radiance[..., 0] = float(np.log(1.3))
    assert float(light.neutrality_loss().detach()) == pytest.approx((0.2 + 0.1 + 0.1) / 3 / 1.1, rel=1e-5)


def test_environment_survives_the_way_through_an_hdr_file(tmp_path: Path) -> None:
    light = lit(16)
    image = light.to_equirectangular(64)
    np.testing.assert_allclose(image.numpy(), smooth_radiance(equirectangular_directions(64)), rtol=0.1)
    save_environment(tmp_path / "environment.hdr", image)
    back = EnvironmentLight(16)
    back.set_equirectangular(load_environment(tmp_path / "environment.hdr"))
    np.testing.assert_allclose(back.radiance.detach().numpy(), light.radiance.detach().numpy(), rtol=0.08)


def test_equirectangular_rows_run_from_up_to_down() -> None:
    directions = equirectangular_directions(64)
    assert directions[0, 0, 1] > 0.99
    assert directions[32, 64, 0] > 0.99
    assert directions[32, 96, 2] > 0.99


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "environment.hdr").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"environment\.hdr: not a readable image"):
        load_environment(tmp_path / "environment.hdr")


def test_resolution_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        EnvironmentLight(24)

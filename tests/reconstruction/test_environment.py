"""Light from all round, found from pictures: of a metal ball at a known place, and of a ball that is found with it."""

import numpy as np
import pytest
import torch
from views_of_a_ball import camera_centres, write_dataset

from reconstruction.appearance import ReadyLight, SceneLight, load_light, save_light
from reconstruction.data import load_views
from reconstruction.field import MaterialField
from reconstruction.light import EnvironmentLight, cube_directions
from reconstruction.optimise import Optimiser
from reconstruction.rasterizer import get_rasterizer
from reconstruction.shading import split_sum
from reconstruction.surface_normals import perturbed
from scan2twin.config import ReconstructConfig
from scan2twin.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def known_light() -> EnvironmentLight:
    """A bluish sky and a warm lamp that is 20 degrees wide."""
    directions = cube_directions(32)
    lamp = np.exp(30 * (directions @ np.array([0.48, 0.64, 0.6]) - 1))[..., None] * (8.0, 7.0, 5.0)
    sky = (0.6 + 0.4 * directions[..., 1:2]) * (0.8, 0.9, 1.1)
    light = EnvironmentLight(32)
    with torch.no_grad():
        light.log_radiance.copy_(torch.from_numpy(lamp + sky).log())
    return light.requires_grad_(False)


def unit_vectors(count: int, seed: int) -> torch.Tensor:
    vectors = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=1)


def test_a_metal_ball_shows_its_environment() -> None:
    """Normals and materials are given, as of a polished ball; the light alone is sought."""
    truth = known_light().prefilter()
    normals, views = unit_vectors(6000, 0), unit_vectors(6000, 1)
    views = torch.nn.functional.normalize(normals + 0.9 * views, dim=1)
    polished = torch.full((6000, 1), 0.25), torch.ones(6000, 1)
    with torch.no_grad():
        seen = split_sum(normals, views, *polished, truth).slope
    light = EnvironmentLight(32)
    optimizer = torch.optim.Adam(light.parameters(), lr=0.1)
    for i in range(120):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.1 ** (i / 120)
        loss = (split_sum(normals, views, *polished, light.prefilter()).slope - seen).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    directions = unit_vectors(500, 2)
    with torch.no_grad():
        for roughness in (0.25, 0.6):
            found, expected = (
                ready.reflected(directions, torch.full((500,), roughness)) for ready in (light.prefilter(), truth)
            )
            assert float((found / expected - 1).abs().mean()) < 0.06
        brightest = light.radiance.sum(dim=-1).flatten().argmax()
        lamp = torch.from_numpy(cube_directions(32)).reshape(-1, 3)[brightest]
    assert float(lamp @ torch.tensor([0.48, 0.64, 0.6], dtype=torch.float64)) > np.cos(np.radians(8))


def lit_from_above(normals: np.ndarray) -> np.ndarray:
    """A grey matt ball under a bright sky: sRGB of albedo 0.3 times irradiance 1 + 0.7 n_y."""
    light = 0.3 * (1 + 0.7 * normals[..., 1:2])
    return np.broadcast_to(1.055 * light ** (1 / 2.4) - 0.055, normals.shape)


def test_light_from_above_is_not_painted_on_the_ball(tmp_path) -> None:
    dataset = write_dataset(tmp_path, camera_centres(24), heldout_every=0, color_of=lit_from_above)
    views, _ = load_views(tmp_path, dataset, "train", 64)
    spread = {}
    for appearance in ("flash", "environment"):
        config = ReconstructConfig(resolution=64, grid=16, iterations=200, appearance=appearance)
        fitted = Optimiser(views, np.ones(3), config, get_rasterizer("numba", torch.device("cpu")))
        psnr = [step.psnr for step in fitted.run()]
        assert np.mean(psnr[-24:]) > 33
        with torch.no_grad():
            albedo = fitted.field(fitted.surface.mesh().vertices).albedo.mean(dim=1)
        spread[appearance] = float(albedo.std() / albedo.mean())
    assert spread["flash"] == pytest.approx(0.7 / np.sqrt(3), abs=0.08)  # all of it
    assert spread["environment"] < 0.6 * spread["flash"]
    assert fitted.light is not None
    ready = fitted.light.ready().environment
    assert ready is not None
    up, down = ready.irradiance(torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])).mean(dim=1).tolist()
    assert up > 1.5 * down
    found = ready.irradiance(unit_vectors(200, 3)).detach()
    assert float((found / found.mean(dim=1, keepdim=True) - 1).abs().max()) < 0.1  # white, as it was


def test_environment_and_lamp_share_the_light() -> None:
    normals = unit_vectors(50, 0)
    towards = 2 * torch.nn.functional.normalize(normals + 0.5 * unit_vectors(50, 1), dim=1)
    finish = torch.full((50, 1), 0.5), torch.full((50, 1), 0.2)
    environment = known_light().prefilter()
    whole = ReadyLight(torch.tensor(0.3), 1.5, environment).response(normals, towards, *finish)
    lamp = ReadyLight(torch.tensor(1.0), 1.5, None).response(normals, towards, *finish)
    around = split_sum(normals, towards / 2, *finish, environment)
    for found, flash, rest in zip(whole, lamp, around, strict=True):
        torch.testing.assert_close(found, 0.3 * flash + 0.7 * rest)


def test_what_is_hidden_from_the_surroundings_is_lit_by_the_lamp_alone() -> None:
    normals, finish = unit_vectors(20, 0), (torch.full((20, 1), 0.5), torch.zeros(20, 1))
    light = ReadyLight(torch.tensor(0.3), 1.5, known_light().prefilter())
    hidden = light.response(normals, 2 * normals, *finish, occlusion=torch.zeros(20, 1))
    lamp = ReadyLight(torch.tensor(0.3), 1.5, None).response(normals, 2 * normals, *finish)
    torch.testing.assert_close(hidden.slope, (lamp.slope - 0.7).expand(20, 3))
    torch.testing.assert_close(hidden.offset, lamp.offset.expand(20, 3))


def test_an_environment_comes_back_from_its_files(tmp_path) -> None:
    save_light(SceneLight(1.7, 0.4, known_light()), tmp_path)
    light = load_light(tmp_path)
    assert light is not None
    assert (light.distance, float(light.share)) == (1.7, pytest.approx(0.4))
    assert light.environment is not None
    back, truth = light.environment.prefilter(), known_light().prefilter()
    directions = unit_vectors(300, 0)
    torch.testing.assert_close(back.irradiance(directions), truth.irradiance(directions), rtol=0.01, atol=0)
    glossy = [ready.reflected(directions, torch.full((300,), 0.4)) for ready in (back, truth)]
    torch.testing.assert_close(*glossy, rtol=0.03, atol=0)
    (tmp_path / "environment.hdr").unlink()
    with pytest.raises(InputError, match=r"environment\.hdr: not a readable image"):
        load_light(tmp_path)


def test_a_bump_tilts_a_normal_by_its_tangent() -> None:
    normals = unit_vectors(100, 0)
    across = torch.nn.functional.normalize(torch.linalg.cross(normals, unit_vectors(100, 1)), dim=1)
    tilted = perturbed(normals, 0.5 * across + 0.7 * normals)  # what lies along the normal does not count
    torch.testing.assert_close((tilted * normals).sum(dim=1), torch.full((100,), 1 / np.hypot(1, 0.5)).float())
    torch.testing.assert_close(tilted.norm(dim=1), torch.ones(100))
    torch.testing.assert_close(perturbed(normals, 3 * normals), normals)


def test_only_a_material_that_varies_is_held_against_a_field() -> None:
    points, generator = torch.rand(400, 3) - 0.5, torch.Generator().manual_seed(0)
    field = MaterialField(seed=1)
    with torch.no_grad():
        field.grid.table.zero_()
        assert float(field.variation(points, generator)) == 0
        field.grid.table[-1].normal_(generator=generator)
        assert float(field.variation(points, generator)) > 0.05


def test_even_light_is_not_held_against_an_environment() -> None:
    even = EnvironmentLight(16)
    assert float(even.unevenness_loss().detach()) == pytest.approx(0, abs=1e-10)
    with torch.no_grad():
        even.log_radiance += 1.0  # brighter, but as even
    assert float(even.unevenness_loss().detach()) == pytest.approx(0, abs=1e-10)
    assert float(known_light().unevenness_loss()) > 0.1

"""The headlight: closed forms against references written out by hand, and a flashed ball whose albedo comes back."""

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given
from hypothesis import strategies as st
from views_of_a_ball import CENTRE, camera_centres, color_srgb, write_dataset

from reconstruction.appearance import (
    ReadyLight,
    SceneLight,
    camera_centre,
    load_light,
    retroreflection,
    save_light,
)
from reconstruction.cameras import clip_from_camera, inverse_rigid
from reconstruction.data import load_views
from reconstruction.field import MaterialField
from reconstruction.optimise import Optimiser
from reconstruction.rasterizer import get_rasterizer
from reconstruction.surface_normals import vertex_normals
from reconstruction.view_renderer import decode, encode, render_view
from scan2twin.capture.models import Intrinsics
from scan2twin.config import ReconstructConfig

pytestmark = pytest.mark.usefixtures("one_thread")
RASTERIZER = get_rasterizer("numba", torch.device("cpu"))


def cook_torrance(normal, light, view, roughness):
    """The specular BRDF of glTF 2.0, appendix B.3, without Fresnel, for any two directions."""
    half = (light + view) / np.linalg.norm(light + view)
    alpha2 = roughness**4
    nl, nv, nh = normal @ light, normal @ view, normal @ half
    distribution = alpha2 / (np.pi * (nh**2 * (alpha2 - 1) + 1) ** 2)
    masked_light = 2 * nl / (nl + np.sqrt(alpha2 + (1 - alpha2) * nl**2))
    masked_view = 2 * nv / (nv + np.sqrt(alpha2 + (1 - alpha2) * nv**2))
    return distribution * masked_light * masked_view / (4 * nl * nv)


@given(st.floats(0.05, 1.5), st.floats(0.2, 1.0))
def test_the_closed_form_is_cook_torrance_with_light_and_camera_in_one_place(angle, roughness):
    direction = np.array([np.sin(angle), 0, np.cos(angle)])
    expected = np.pi * cook_torrance(np.array([0.0, 0, 1]), direction, direction, roughness)
    found = retroreflection(torch.tensor(np.cos(angle)), torch.tensor(roughness))
    assert float(found) == pytest.approx(expected, rel=1e-4)


def response(light, normals, to_camera, roughness=0.5, metallic=0.0):
    column = torch.ones(len(normals), 1, dtype=normals.dtype)
    return light.ready().response(normals, to_camera, roughness * column, metallic * column)


@given(st.floats(0, 1), st.floats(0.5, 3), st.floats(0, 1.4))
def test_a_matt_surface_gets_even_light_and_a_lamp_that_falls_off(share, distance, angle):
    light = SceneLight(distance=1.5, share=share).requires_grad_(False)
    normals = torch.tensor([[0.0, 0.0, 1.0]])
    to_camera = distance * torch.tensor([[np.sin(angle), 0.0, np.cos(angle)]]).float()
    found = response(light, normals, to_camera, roughness=1.0)
    assert float(found.slope) == pytest.approx(1 - share + share * np.cos(angle) * (1.5 / distance) ** 2, abs=1e-5)


def test_metal_reflects_only_its_own_colour():
    light = SceneLight(distance=1.0, share=1.0).requires_grad_(False)
    towards = torch.tensor([[0.0, 0.0, 1.0]])
    metal = response(light, towards, towards, metallic=1.0)
    assert float(metal.offset) == 0
    assert float(metal.slope) == pytest.approx(float(retroreflection(torch.ones(1), torch.tensor([0.5]))), rel=1e-6)


def test_no_lamp_leaves_the_albedo_as_it_is():
    light = SceneLight(distance=1.0, share=0.0).requires_grad_(False)
    normals = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    found = response(light, normals, torch.randn(50, 3, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(found.slope, torch.ones(50, 1))
    assert torch.equal(found.offset, torch.zeros(50, 1))


def test_gradients_agree_with_finite_differences():
    generator = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(6, 3, generator=generator).double(), dim=1)
    to_camera = (2 * normals + 0.5 * torch.randn(6, 3, generator=generator).double()).requires_grad_()
    roughness = torch.full((6, 1), 0.4).double().requires_grad_()
    metallic = torch.full((6, 1), 0.3).double().requires_grad_()

    def shaded(normals, to_camera, roughness, metallic, share):
        found = ReadyLight(share, 1.2, None).response(normals, to_camera, roughness, metallic)
        return 0.5 * found.slope + found.offset

    share = torch.tensor(0.6).double().requires_grad_()
    assert torch.autograd.gradcheck(shaded, (normals.requires_grad_(), to_camera, roughness, metallic, share))


def test_the_share_stays_a_share():
    light = SceneLight(distance=1.0)
    for beyond, bound in ((1.3, 1.0), (-0.2, 0.0)):
        light.share.data.fill_(beyond)
        light.constrain()
        assert float(light.share.detach()) == bound


def test_a_light_comes_back_from_its_file(tmp_path):
    save_light(SceneLight(distance=1.7, share=0.4), tmp_path)
    light = load_light(tmp_path)
    assert light is not None
    assert light.distance == 1.7
    assert float(light.share.detach()) == pytest.approx(0.4)
    save_light(None, tmp_path)
    assert load_light(tmp_path) is None


def test_the_camera_centre_is_found_from_its_projection():
    camera_to_world = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = camera_to_world * np.linalg.det(camera_to_world), (0.3, -1.2, 2.5)
    clip = clip_from_camera(Intrinsics(fx=300, fy=310, cx=120, cy=140), 256, 256) @ inverse_rigid(pose)
    np.testing.assert_allclose(camera_centre(torch.from_numpy(clip)), pose[:3, 3], atol=1e-9)


def test_normals_of_a_sphere_point_outward_and_carry_gradients():
    sphere = trimesh.creation.icosphere(subdivisions=3)
    vertices = torch.tensor(sphere.vertices, dtype=torch.float64, requires_grad=True)
    normals = vertex_normals(vertices, torch.tensor(np.array(sphere.faces)))
    assert float((normals - vertices).norm(dim=1).max()) < 0.02
    (gradient,) = torch.autograd.grad(normals[:, 0].sum(), vertices)
    assert float(gradient.abs().max()) > 0.1


def test_transfer_is_undone_and_dark_values_have_a_gradient():
    srgb = torch.linspace(0, 1, 101)
    torch.testing.assert_close(encode(decode(srgb)), srgb, rtol=1e-5, atol=1e-5)
    dark = torch.tensor([1e-3], requires_grad=True)
    encode(dark).sum().backward()
    assert 0 < float(dark.grad) < 50


@pytest.fixture(scope="module")
def flashed_ball(tmp_path_factory):
    """A matt ball lit by 30 % even light and 70 % flash."""
    folder = tmp_path_factory.mktemp("flashed")
    return folder, write_dataset(folder, camera_centres(24), heldout_every=0, flash=0.7)


def test_the_albedo_and_the_lamp_are_told_apart(flashed_ball):
    folder, dataset = flashed_ball
    views, _ = load_views(folder, dataset, "train", 64)
    config = ReconstructConfig(resolution=64, grid=16, iterations=250, appearance="flash")
    fitted = Optimiser(views, np.ones(3), config, RASTERIZER)
    for _ in fitted.run():
        pass
    assert fitted.light is not None
    assert float(fitted.light.share.detach()) == pytest.approx(0.7, abs=0.12)
    with torch.no_grad():
        vertices = fitted.surface.mesh().vertices
        found = fitted.field.albedo_srgb(vertices).numpy()
    normals = vertices.numpy() - CENTRE
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    assert np.abs(found - color_srgb(normals)).mean() < 0.03


def test_a_ball_in_even_light_needs_no_lamp(tmp_path):
    dataset = write_dataset(tmp_path, camera_centres(24), heldout_every=0)
    views, _ = load_views(tmp_path, dataset, "train", 64)
    config = ReconstructConfig(resolution=64, grid=16, iterations=160, appearance="flash")
    fitted = Optimiser(views, np.ones(3), config, RASTERIZER)
    for _ in fitted.run():
        pass
    assert fitted.light is not None
    assert float(fitted.light.share.detach()) < 0.06


def test_light_without_a_lamp_renders_the_radiance(flashed_ball):
    folder, dataset = flashed_ball
    views, _ = load_views(folder, dataset, "train", 64)
    field, faces = MaterialField(seed=1), torch.tensor([[0, 1, 2]], dtype=torch.int32)
    vertices = torch.tensor([[-0.3, -0.3, 0.0], [0.3, -0.3, 0.0], [0.0, 0.3, 0.1]])
    clip = views.clip_from_camera[0] @ views.camera_from_unit[0]
    with torch.no_grad():
        plain = render_view(RASTERIZER, vertices, faces, None, field, clip, 64)
        lit = render_view(RASTERIZER, vertices, faces, None, field, clip, 64, light=SceneLight(2.0, share=0.0).ready())
    torch.testing.assert_close(lit, plain, rtol=0, atol=1e-5)

"""A textured model under a headlight: what is drawn, and the albedo that its photos give back."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from reconstruction.appearance import SceneLight, retroreflection
from reconstruction.atlas import UvMesh, unwrap
from reconstruction.cameras import clip_from_camera, inverse_rigid
from reconstruction.data import Views
from reconstruction.maps import from_material
from reconstruction.model import Material
from reconstruction.preview import camera_rotation
from reconstruction.refine_textures import observe, refine
from reconstruction.render import Renderer, View, straight_srgb
from reconstruction.view_renderer import expose
from scan2twin.capture.models import Intrinsics
from scan2twin.progress import LogProgress

SIZE, SIDE, DISTANCE = 64, 64, 3.0
LENS = Intrinsics(fx=160, fy=160, cx=SIDE / 2, cy=SIDE / 2)
ALBEDO = 100  # 8-bit sRGB
ALBEDO_LINEAR = ((ALBEDO / 255 + 0.055) / 1.055) ** 2.4


@pytest.fixture(scope="module")
def ball() -> UvMesh:
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=0.5)
    return unwrap(mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32), SIZE)


def material(roughness: float, metallic: float = 0.0) -> Material:
    packed = np.rint(np.full((SIZE, SIZE, 3), (1.0, roughness, metallic)) * 255).astype(np.uint8)
    return Material(np.full((SIZE, SIZE, 3), ALBEDO, np.uint8), packed)


def lamp(share: float, distance: float = DISTANCE) -> SceneLight:
    return SceneLight(distance, share).requires_grad_(False)


def view(distance: float = DISTANCE, azimuth: float = 0.7) -> View:
    camera_to_world = np.eye(4)
    camera_to_world[:3, :3] = camera_rotation(azimuth, 0.2)
    camera_to_world[:3, 3] = distance * camera_to_world[:3, 2]
    return View("", camera_to_world, LENS, SIDE, SIDE)


def test_a_ball_is_drawn_as_the_brdf_says(ball: UvMesh) -> None:
    """Along the middle row, the sphere's normals and distances are known in closed form."""
    share, roughness = 0.8, 128 / 255
    drawn = Renderer(ball, material(roughness), lamp(share)).draw(view(), supersampling=4)
    row = drawn[SIDE // 2 - 1 : SIDE // 2 + 1, :, 0].mean(dim=0).numpy()
    for column in range(SIDE // 2 - 20, SIDE // 2 + 20, 4):
        x = (column + 0.5 - SIDE / 2) / LENS.fx
        towards = np.array([x, 0, -1]) / np.hypot(x, 1)
        along = -towards[2] * DISTANCE
        far = along - np.sqrt(0.25 - DISTANCE**2 + along**2)
        cosine = -towards @ (far * towards + (0, 0, DISTANCE)) / 0.5
        lit = share * cosine * (DISTANCE / far) ** 2
        gloss = float(retroreflection(torch.tensor(cosine), torch.tensor(roughness)))
        expected = ALBEDO_LINEAR * (1 - share + lit) + 0.04 * lit * gloss
        assert row[column] == pytest.approx(expected, rel=0.02)


def test_a_share_of_nothing_is_the_albedo(ball: UvMesh) -> None:
    plain = Renderer(ball, material(0.5)).draw(view())
    lit = Renderer(ball, material(0.5), lamp(0.0)).draw(view())
    torch.testing.assert_close(lit, plain)


def test_pictures_are_exposed_for_their_distance(ball: UvMesh) -> None:
    renderer = Renderer(ball, material(1.0), lamp(1.0, distance=1.0))
    near, far = (renderer.draw(view(distance)) for distance in (10.0, 20.0))
    middle = SIDE // 2
    assert float(near[middle, middle, 0]) == pytest.approx(float(far[middle, middle, 0]), rel=0.15)


@pytest.mark.parametrize(("roughness", "metallic"), [(0.9, 0.0), (0.4, 0.0), (0.6, 0.4)])
def test_photos_give_the_albedo_back(ball: UvMesh, roughness: float, metallic: float) -> None:
    light, surface = lamp(0.7), material(roughness, metallic)
    seen, gain = view(), torch.tensor([1.2, 0.9, 1.0])
    clip, camera = clip_from_camera(LENS, SIDE, SIDE), inverse_rigid(seen.camera_to_world)
    drawn = straight_srgb(
        Renderer(ball, surface, light).draw_through(torch.tensor(clip @ camera).float(), (SIDE, SIDE))
    )
    color = expose(drawn[..., :3], gain).clamp(0, 1) * drawn[..., 3:]
    photo = (torch.cat([color, drawn[..., 3:]], dim=2) * 255).round().to(torch.uint8).flip(0)
    views = Views(
        (0,), photo[None], torch.tensor(clip)[None].float(), torch.tensor(camera)[None].float(), torch.ones(1)
    )  # fmt: skip
    (photo,) = observe(ball, views, gain[None], SIZE)
    start = from_material(surface)
    start[..., :3] = 0.6
    found = refine(start, [photo], light.ready(), 200, LogProgress(), glossy=False)
    assert torch.equal(found[..., 3:], start[..., 3:])
    texels = (photo.uv * SIZE).long().clamp(0, SIZE - 1)
    error = (found[texels[:, 1], texels[:, 0], :3] - ALBEDO / 255).abs() * photo.weight
    assert float(error.mean()) < 0.01
    assert float((photo.color - ALBEDO / 255).abs().mean()) > 0.03  # what the light does is not small


def test_a_material_of_one_roughness_needs_no_texture(ball: UvMesh) -> None:
    surface = replace(material(0.6), metallic_roughness=None, roughness=0.6)
    constant = Renderer(ball, surface, lamp(0.9)).draw(view())
    textured = Renderer(ball, material(0.6), lamp(0.9)).draw(view())
    torch.testing.assert_close(constant, textured, rtol=1e-3, atol=1e-3)

"""Texture refinement: photos of a known texture bring its detail back, and only where they show it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from scipy.ndimage import gaussian_filter

from reconstruction.appearance import SceneLight
from reconstruction.atlas import UvMesh, unwrap
from reconstruction.bake import rasterize_atlas, to_8bit
from reconstruction.cameras import clip_from_camera, inverse_rigid
from reconstruction.data import Views
from reconstruction.maps import to_material
from reconstruction.model import Material
from reconstruction.preview import camera_rotation
from reconstruction.refine_textures import Observations, closest, observe, refine
from reconstruction.render import Renderer, straight_srgb
from reconstruction.view_renderer import expose
from scan2twin.capture.models import Intrinsics
from scan2twin.progress import LogProgress

SIZE, SIDE, COUNT = 128, 96, 12
GREY = torch.tensor([0.5, 0.5, 0.5, 0.9, 0.0, 0.0, 0.0, 1.0]).expand(SIZE, SIZE, 8).contiguous()


@pytest.fixture(scope="module")
def egg() -> UvMesh:
    mesh = trimesh.creation.icosphere(subdivisions=3)
    return unwrap((mesh.vertices * (0.3, 0.5, 0.25)).astype(np.float32), mesh.faces.astype(np.int32), SIZE)


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    """A blotchy texture whose blotches are a few texels wide."""
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(SIZE, SIZE, 3)), (2, 2, 0))
    return torch.from_numpy(0.5 + 0.15 * noise / noise.std()).float().clamp(0.1, 0.9)


@pytest.fixture(scope="module")
def gains() -> torch.Tensor:
    return torch.exp(0.2 * torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def views(egg: UvMesh, truth: torch.Tensor, gains: torch.Tensor) -> Views:
    return photograph(egg, Material(to_8bit(truth).numpy()), gains, None)


def photograph(egg: UvMesh, material: Material, gains: torch.Tensor, light: SceneLight | None) -> Views:
    """Photos from a ring above, so that nothing shows the underside; each has its own exposure."""
    renderer = Renderer(egg, material, light)
    clip = clip_from_camera(Intrinsics(fx=240, fy=240, cx=SIDE / 2, cy=SIDE / 2), SIDE, SIDE)
    images, cameras = [], []
    for i in range(COUNT):
        camera_to_unit = np.eye(4)
        camera_to_unit[:3, :3] = camera_rotation(2 * np.pi * i / COUNT, 0.5)
        camera_to_unit[:3, 3] = 3 * camera_to_unit[:3, 2]
        cameras.append(inverse_rigid(camera_to_unit))
        drawn = straight_srgb(renderer.draw_through(torch.from_numpy(clip @ cameras[-1]).float(), (SIDE, SIDE)))
        color = expose(drawn[..., :3], gains[i]) * drawn[..., 3:]
        images.append(to_8bit(torch.cat([color, drawn[..., 3:]], dim=2)).flip(0))
    projections = torch.from_numpy(np.tile(clip, (COUNT, 1, 1))).float()
    return Views(
        tuple(range(COUNT)), torch.stack(images), projections, torch.from_numpy(np.array(cameras)).float(),
        torch.ones(COUNT),
    )  # fmt: skip


def views_of(views: Views, count: int) -> Views:
    """Return the first `count` views."""
    return Views(
        views.index[:count], views.images[:count], views.clip_from_camera[:count], views.camera_from_unit[:count],
        views.weight[:count],
    )  # fmt: skip


@pytest.fixture(scope="module")
def observed(egg: UvMesh, views: Views, gains: torch.Tensor) -> list[Observations]:
    return observe(egg, views, gains, SIZE)


@pytest.fixture(scope="module")
def refined(observed: list[Observations]) -> torch.Tensor:
    return refine(GREY, observed, None, 120, LogProgress())


def seen_from_above(egg: UvMesh) -> tuple[torch.Tensor, torch.Tensor]:
    """Texels (S, S) that the ring of cameras sees well, and those whose surface looks steeply down."""
    rast = rasterize_atlas(egg, SIZE)[0]
    face = rast[..., 3].long() - 1
    up = torch.from_numpy(egg.normals[:, 1][egg.faces].mean(axis=1))[face]
    covered = face >= 0
    return covered & (up > 0), covered & (up < -0.97)


def test_the_detail_comes_back(egg: UvMesh, truth: torch.Tensor, refined: torch.Tensor) -> None:
    seen, _ = seen_from_above(egg)
    before, after = ((maps[..., :3] - truth)[seen].abs().mean() for maps in (GREY, refined))
    assert after < 0.35 * before


def test_colours_are_those_without_the_gains(truth: torch.Tensor, refined: torch.Tensor, egg: UvMesh) -> None:
    seen, _ = seen_from_above(egg)
    assert torch.allclose(refined[seen][:, :3].mean(dim=0), truth[seen].mean(dim=0), atol=0.01)


def test_what_no_photo_shows_stays(egg: UvMesh, refined: torch.Tensor) -> None:
    _, hidden = seen_from_above(egg)
    assert hidden.sum() > 20
    assert (refined[hidden][:, :3] - 0.5).abs().mean() < 0.01  # a neighbour's trilinear lookup may touch its edge


def test_observations_are_what_the_texture_predicts(
    observed: list[Observations], truth: torch.Tensor, views: Views
) -> None:
    """The found texture coordinates, looked up by hand in the true texture, give the photos' colours."""
    for photo in observed[::4]:
        assert len(photo.uv) > 500
        texels = photo.uv * SIZE - 0.5
        looked_up = truth[
            texels[:, 1].round().long().clamp(0, SIZE - 1), texels[:, 0].round().long().clamp(0, SIZE - 1)
        ]
        assert (looked_up - photo.color).abs().mean() < 0.06


def test_outlines_are_not_believed(egg: UvMesh, views: Views, gains: torch.Tensor, refined: torch.Tensor) -> None:
    """A rim of wrong colour round the object, a pixel wide, as a loose mask leaves it, changes nothing."""
    images = views.images.clone()
    inner = torch.nn.functional.max_pool2d((images[..., 3:] < 255).float().permute(0, 3, 1, 2), 3, 1, 1)
    images[..., 1][(inner[:, 0] > 0)] = 255
    assert (images != views.images).sum() > 1000
    again = refine(GREY, observe(egg, replace(views, images=images), gains, SIZE), None, 120, LogProgress())
    assert torch.equal(again, refined)


def test_the_same_photos_give_the_same_texture(observed: list[Observations], refined: torch.Tensor) -> None:
    assert torch.equal(refine(GREY, observed, None, 120, LogProgress()), refined)


def test_a_view_without_trust_says_nothing(observed: list[Observations]) -> None:
    untrusted = [replace(photo, weight=torch.zeros_like(photo.weight)) for photo in observed]
    assert torch.equal(refine(GREY, untrusted, None, 12, LogProgress()), GREY)


def test_a_grazing_look_counts_less(egg: UvMesh, views: Views, gains: torch.Tensor) -> None:
    """The weight is the squared cosine to the surface, highest in the middle of the egg's picture."""
    (photo,) = observe(egg, views_of(views, 1), gains, SIZE)
    weight = photo.weight.flatten()
    assert 0.95 < weight.max() <= 1
    assert weight.min() < 0.3


def test_a_flash_is_taken_out_of_the_colours(egg: UvMesh, truth: torch.Tensor) -> None:
    light = SceneLight(3.0, 0.7).requires_grad_(False)
    even = torch.ones(COUNT, 3)
    flashed = photograph(egg, Material(to_8bit(truth).numpy()), even, light)
    photos = observe(egg, flashed, even, SIZE)
    seen, _ = seen_from_above(egg)
    with_light = refine(GREY, photos, light.ready(), 240, LogProgress(), glossy=False)[..., :3]
    without = refine(GREY, photos, None, 240, LogProgress())[..., :3]
    assert torch.allclose(with_light[seen].mean(dim=0), truth[seen].mean(dim=0), atol=0.012)
    assert (with_light - truth)[seen].abs().mean() < 0.6 * (without - truth)[seen].abs().mean()


def test_occlusion_is_kept_where_the_photos_show_it_and_left_out_where_not(egg: UvMesh, truth: torch.Tensor) -> None:
    light = SceneLight(3.0, 0.2).requires_grad_(False)
    even = torch.ones(COUNT, 3)
    hollow = torch.cat([truth, GREY[..., 3:7], torch.full((SIZE, SIZE, 1), 0.7)], dim=2)
    plain = torch.cat([hollow[..., :7], torch.ones(SIZE, SIZE, 1)], dim=2)
    for shown in (hollow, plain):
        material = to_material(shown)
        assert material.occluded == (shown is hollow)
        photos = observe(egg, photograph(egg, material, even, light), even, SIZE)
        assert closest([plain, hollow], photos, light.ready()) is shown


def test_a_fit_that_other_photos_refute_is_not_kept(observed: list[Observations], refined: torch.Tensor) -> None:
    spoilt = refined + 0.1 * torch.randn(refined.shape, generator=torch.Generator().manual_seed(1))
    assert closest([GREY, refined], observed, None) is refined
    assert closest([refined, spoilt], observed, None) is refined
    assert closest([spoilt, refined], observed, None) is refined

"""Map stacks: baked from a field, turned into textures and back, drawn, and fitted to photos."""

import numpy as np
import pytest
import torch
import trimesh

from reconstruction.appearance import SceneLight
from reconstruction.atlas import COARSEST_MIP, UvMesh, unwrap, vertex_tangents
from reconstruction.bake import rasterize_atlas
from reconstruction.cameras import clip_from_camera, inverse_rigid
from reconstruction.data import Views
from reconstruction.field import MIN_ROUGHNESS, MaterialField
from reconstruction.light import EnvironmentLight
from reconstruction.maps import (
    LEAST,
    MOST,
    bake_maps,
    from_material,
    matt,
    mip_level,
    tangent_frame,
    tilted,
    to_material,
)
from reconstruction.model import MATT, Material
from reconstruction.preview import camera_rotation
from reconstruction.rasterizer import get_rasterizer
from reconstruction.refine_textures import observe, refine
from reconstruction.render import Renderer, straight_srgb
from scan2twin.capture.models import Intrinsics
from scan2twin.progress import LogProgress

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = 64


@pytest.fixture(scope="module")
def ball() -> UvMesh:
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=0.4)
    return unwrap(mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32), SIZE)


def constant_field(bump: tuple[float, float, float]) -> MaterialField:
    """A field of one material whose bump is `bump` everywhere."""
    field = MaterialField(seed=0)
    with torch.no_grad():
        field.layers[-1].weight.zero_()
        field.layers[-1].bias[5:] = torch.logit((torch.tensor(bump) + 1) / 2)
    return field.requires_grad_(False)


def frames_of_texels(mesh: UvMesh) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    rast = rasterize_atlas(mesh, SIZE)
    attributes = torch.from_numpy(np.concatenate([mesh.normals, vertex_tangents(mesh)], axis=1))[None]
    rasterizer = get_rasterizer("numba", torch.device("cpu"))
    seen = rast[0, ..., 3] > 0
    spread = rasterizer.interpolate(attributes, rast, torch.from_numpy(mesh.faces))[0][seen]
    return seen, tangent_frame(spread[:, :3], spread[:, 3:])


def test_slopes_in_the_texture_tilt_normals_as_the_bumps_in_space_do(ball: UvMesh) -> None:
    bump = torch.tensor([0.3, -0.2, 0.1])
    maps = bake_maps(ball, np.ones(len(ball.faces), bool), constant_field((0.3, -0.2, 0.1)), SIZE)
    seen, frame = frames_of_texels(ball)
    normal = frame[0]
    expected = torch.nn.functional.normalize(normal + bump - normal * (normal @ bump)[:, None], dim=1)
    found = tilted(frame, maps[seen][:, 5:7])
    assert float((found * expected).sum(dim=1).min()) > np.cos(np.radians(0.5))
    # The same after 8 bits, as viewers read it: n = normalize(2 t - 1) in the frame of tangent, bitangent and normal.
    texture = to_material(maps).normal
    assert texture is not None
    coded = torch.from_numpy(texture).float()[seen] / 255 * 2 - 1
    world = sum(coded[:, k : k + 1] * frame[(k + 1) % 3] for k in range(3))
    assert float((torch.nn.functional.normalize(world, dim=1) * expected).sum(dim=1).min()) > np.cos(np.radians(1.0))


def test_a_relief_that_says_nothing_gives_no_normal_texture(ball: UvMesh) -> None:
    maps = bake_maps(ball, np.ones(len(ball.faces), bool), constant_field((0.0, 0.0, 0.0)), SIZE)
    assert to_material(maps).normal is None


def test_textures_and_maps_lead_to_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(16, 16, 8, generator=generator)
    maps[..., 3:7] = torch.tensor(LEAST) + maps[..., 3:7] * (torch.tensor(MOST) - torch.tensor(LEAST))
    back = from_material(to_material(maps))
    for channels, error in ((slice(0, 5), 0.002), (slice(5, 7), 0.02), (slice(7, 8), 0.002)):
        torch.testing.assert_close(back[..., channels], maps[..., channels], rtol=0, atol=error)
    plain = from_material(Material(np.full((4, 4, 3), 255, np.uint8), roughness=0.4))
    torch.testing.assert_close(plain[0, 0], torch.tensor([1.0, 1, 1, 0.4, 0, 0, 0, 1]))
    flat = matt(maps)
    assert torch.equal(flat[..., [0, 1, 2, 7]], maps[..., [0, 1, 2, 7]])
    torch.testing.assert_close(flat[0, 0, 3:7], torch.tensor([MATT, 0.0, 0.0, 0.0]))


def test_lookups_go_by_a_pixels_area_and_stop_where_charts_would_mix() -> None:
    """A pixel of 16 by 4 texels, however it is turned, has the area of 8 by 8: level 3, less the lookup's own width."""
    for angle in (0.0, 0.3, 1.2):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        jacobian = torch.from_numpy(turn @ np.diag([16, 4]) / 256).float()
        assert float(mip_level(jacobian.flatten(), 256)) == pytest.approx(2.0, abs=1e-4)
    assert float(mip_level(torch.eye(2).flatten() / 256, 256)) == 0
    assert float(mip_level(torch.eye(2).flatten(), 256)) == COARSEST_MIP
    assert float(mip_level(torch.zeros(4), 256)) == 0  # seen edge-on


def test_photos_show_gloss_and_relief(ball: UvMesh) -> None:
    """A ball of glossy metal with tilted normals under a known lamp: the maps are fitted from flat and half-matt."""
    environment = EnvironmentLight(32)
    with torch.no_grad():
        environment.log_radiance[2] = 2.5  # the sky
    light = SceneLight(2.0, 0.2, environment).requires_grad_(False)
    truth = bake_maps(ball, np.ones(len(ball.faces), bool), constant_field((0.25, 0.0, 0.0)), SIZE)
    truth[..., 3], truth[..., 4] = 0.4, 0.9
    drawn = Renderer(ball, to_material(truth), light)
    clip = clip_from_camera(Intrinsics(fx=110, fy=110, cx=32, cy=32), 64, 64)
    images, cameras = [], []
    for i in range(12):
        camera = np.eye(4)
        camera[:3, :3] = camera_rotation(2 * np.pi * i / 12, 0.5 * (-1) ** i)
        camera[:3, 3] = 2 * camera[:3, 2]
        cameras.append(torch.from_numpy(inverse_rigid(camera)).float())
        seen = straight_srgb(drawn.draw_through(torch.from_numpy(clip).float() @ cameras[-1], (64, 64))).flip(0)
        images.append((torch.cat([seen[..., :3] * seen[..., 3:], seen[..., 3:]], dim=2) * 255).round().to(torch.uint8))
    views = Views(
        tuple(range(12)), torch.stack(images), torch.from_numpy(clip).float().expand(12, 4, 4), torch.stack(cameras),
        torch.ones(12),
    )  # fmt: skip
    start = truth.clone()
    start[..., 3], start[..., 4], start[..., 5:7] = 0.55, 0.9, 0.0
    observed = observe(ball, views, torch.ones(12, 3), SIZE)
    found = refine(start, observed, light.ready(), 150, LogProgress())
    seen, _ = frames_of_texels(ball)
    for name, channels, share in (("roughness", [3], 0.8), ("slopes", [5, 6], 0.8)):
        before, after = ((maps - truth)[seen][:, channels].abs().mean() for maps in (start, found))
        assert after < share * before, name
    assert float(found[..., 3].min()) >= MIN_ROUGHNESS
    assert float(found[..., 4].max()) <= 1

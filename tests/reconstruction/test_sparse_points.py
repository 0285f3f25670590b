"""A plain cup, whose hollow no outline shows and no colour tells of: points on its inside do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from reconstruction.benchmark import KnownMesh, spiral
from reconstruction.cameras import to_clip
from reconstruction.closest_point import TriangleTree
from reconstruction.data import load_views
from reconstruction.free_space import free_distance
from reconstruction.optimise import Optimiser
from reconstruction.rasterizer import get_rasterizer
from reconstruction.sparse_points import SparsePoints, load_points, point_loss
from scan2twin.config import ReconstructConfig

RASTERIZER = get_rasterizer("numba", torch.device("cpu"))
# Radius and height along the cup's outside, over its rim and down its inside.
PROFILE = [[0, -0.4], [0.35, -0.4], [0.5, 0.4], [0.42, 0.4], [0.28, -0.2], [0, -0.2]]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def cup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cup")
    mesh = trimesh.creation.revolve(PROFILE, sections=48)
    mesh.apply_transform(trimesh.transformations.rotation_matrix(-np.pi / 2, [1, 0, 0]))  # +Z up to +Y up
    mesh.visual = trimesh.visual.TextureVisuals(
        uv=np.full((len(mesh.vertices), 2), 0.5), image=Image.new("RGB", (4, 4), (150, 140, 130))
    )
    mesh.export(folder / "cup.obj")
    known = KnownMesh(folder / "cup.obj")
    dataset = known.write_dataset(folder / "set", spiral(30), np.empty((0, 3)), 64)
    views, _ = load_views(folder / "set", dataset, "train", 64)
    return known, views


def seen_points(known, views, count):
    """Points on the surface with the views that see each."""
    places, _ = trimesh.sample.sample_surface(known.mesh, count, seed=1)
    xyz = torch.tensor(places, dtype=torch.float32)
    vertices, faces = torch.tensor(known.mesh.vertices).float(), torch.tensor(known.mesh.faces).int()
    seen = []
    for k in range(len(views)):
        camera = (views.clip_from_camera[k] @ views.camera_from_unit[k])[None]
        depth = RASTERIZER.interpolate(
            to_clip(vertices, camera)[..., 3:],
            RASTERIZER.rasterize(to_clip(vertices, camera), faces, (256, 256)),
            faces,
        )
        clip = to_clip(xyz, camera)[0]
        pixel = ((clip[:, :2] / clip[:, 3:] + 1) * 128).long().clamp(0, 255)
        drawn = depth[0, pixel[:, 1], pixel[:, 0], 0]
        seen.append(torch.nonzero((drawn > 0) & (clip[:, 3] < drawn + 0.01)).squeeze(1))
    return SparsePoints(xyz, torch.ones(count), tuple(seen))


def hollow_error(known, mesh):
    """Mean distance of the true inside to a mesh, unit-frame lengths."""
    radius = np.linalg.norm(known.mesh.vertices[:, [0, 2]], axis=1)
    bottom = known.mesh.vertices[(radius < 0.3 / 0.98) & (known.mesh.vertices[:, 1] > -0.3)]
    assert len(bottom) > 20
    tree = TriangleTree(mesh.vertices.detach().double().numpy(), mesh.faces.numpy())
    return tree.query(bottom).distance.mean()


def fitted(known, views, iterations):
    config = ReconstructConfig(
        resolution=64, grid=24, iterations=iterations, appearance="radiance", refine_cameras=False
    )
    optimiser = Optimiser(views, known.size, config, RASTERIZER)
    while optimiser.iteration < iterations - 1:
        optimiser.step()
    return optimiser.surface.mesh()


def test_points_on_its_inside_hollow_a_plain_cup(cup):
    known, views = cup
    plain = hollow_error(known, fitted(known, views, 60))
    pointed = hollow_error(known, fitted(known, replace(views, points=seen_points(known, views, 500)), 60))
    assert plain > 0.09
    assert pointed < 0.05  # a cell of the first grid is 0.07 wide


def test_a_few_wrong_points_carve_nothing_and_right_ones_little(cup):
    """Points on a ball that two far too deep ones are among: no more is free than thick rays graze off."""
    _, views = cup
    surface = spiral(400) * 0.4
    seen = [np.flatnonzero(surface @ centre > 0.4**2) for centre in views.centers()]
    surface[[7, 200]] *= 0.3
    rows = tuple(torch.from_numpy(row) for row in seen)
    points = SparsePoints(torch.tensor(surface).float(), torch.ones(400), rows)
    for depth, most in ((0.01, 0.05), (0.02, 0.0)):
        below = (spiral(3000) * (0.4 - depth)).astype(np.float32)
        assert (free_distance(below, points, views.centers()) > 0).mean() <= most
    above = (spiral(3000) * 0.46).astype(np.float32)
    assert (free_distance(above, points, views.centers()) > 0).mean() > 0.95


def test_without_points_nothing_is_known_to_be_free(cup):
    _, views = cup
    none = SparsePoints(torch.zeros(0, 3), torch.zeros(0), tuple(torch.zeros(0, dtype=torch.int64) for _ in range(30)))
    assert (free_distance(np.zeros((3, 3), np.float32), none, views.centers()) < 0).all()


def test_points_draw_the_surface_that_their_view_shows(cup):
    """The loss is the distance along the normal, whichever part of a triangle is drawn; points behind do not count."""
    _, views = cup
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.3)
    vertices = torch.tensor(ball.vertices, dtype=torch.float32, requires_grad=True)
    faces = torch.tensor(ball.faces, dtype=torch.int32)
    toward = views.centers()[4] / np.linalg.norm(views.centers()[4])
    aside = np.cross(toward, [0.0, 1.0, 0.0])
    directions = np.stack([toward + 0.2 * turn * aside for turn in (-2, -1, 0, 1, 2)])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    places = np.concatenate([0.33 * directions, [-toward]])  # the last is a stray
    points = SparsePoints(torch.tensor(places).float(), torch.ones(6), (*[torch.zeros(0).long()] * 4, torch.arange(6)))
    camera = views.clip_from_camera[4] @ views.camera_from_unit[4]
    loss = point_loss(points, 4, vertices, faces, camera, RASTERIZER, 128)
    assert float(loss.detach()) == pytest.approx(5 * 0.03, rel=0.05)
    loss.backward()
    pushed = -(vertices.grad * torch.tensor(ball.vertices).float()).sum(dim=1)
    assert pushed.max() > 0
    assert pushed.min() > -1e-6  # outward only


def test_a_datasets_points_are_read_for_the_views_that_are_there(tmp_path):
    np.savez(
        tmp_path / "points.npz", xyz=np.eye(3, dtype=np.float32), error_px=np.float32([0, 1, 2]),
        seen_by=np.int32([5, 5, 8, 9]), seen=np.int32([0, 2, 1, 2]),
    )  # fmt: skip
    points = load_points(tmp_path, (9, 5, 7))
    assert [rows.tolist() for rows in points.seen] == [[2], [0, 2], []]
    np.testing.assert_allclose(points.weight, [1, 1 / 2, 1 / 5])
    assert load_points(tmp_path / "elsewhere", (5,)) is None

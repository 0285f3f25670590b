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
from reconstruction.sparse_points import SparsePoints
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


def seen_points(known, views, count, wrong=0):
    """Points on the surface with the views that see each; the last `wrong` of them lie deep below it."""
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
    if wrong:
        xyz[-wrong:] *= 0.3
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
    plain = hollow_error(known, fitted(known, views, 100))
    pointed = hollow_error(known, fitted(known, replace(views, points=seen_points(known, views, 250)), 100))
    assert plain > 0.1
    assert pointed < 0.02


def test_wrong_points_carve_nothing_where_others_disagree(cup):
    known, views = cup
    points = seen_points(known, views, 250, wrong=5)
    inside, _ = trimesh.sample.sample_surface(known.mesh, 2000, seed=2)
    normals = known.mesh.face_normals[trimesh.proximity.closest_point(known.mesh, inside)[2]]
    below = (inside - 0.03 * normals).astype(np.float32)
    free = free_distance(below, points, views.centers())
    assert (free > 0.01).mean() < 0.02

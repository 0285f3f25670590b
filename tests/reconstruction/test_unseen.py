"""Unseen surface: what photos show stays, the rest continues it smoothly."""

import numpy as np
import pytest
import torch
import trimesh

from reconstruction.atlas import UvMesh, unwrap
from reconstruction.bake import bake, dilate
from reconstruction.cameras import clip_from_camera, inverse_rigid
from reconstruction.data import Views
from reconstruction.preview import camera_rotation
from reconstruction.unseen import fill_unseen, harmonic, seen_faces
from scan2twin.capture.models import Intrinsics

SIZE = 256


@pytest.fixture(scope="module")
def ball() -> UvMesh:
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    return unwrap(mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32), SIZE)


def views_from(elevations: list[float]) -> Views:
    clip = clip_from_camera(Intrinsics(fx=120, fy=120, cx=32, cy=32), 64, 64)
    cameras = []
    for i, elevation in enumerate(elevations):
        camera_to_unit = np.eye(4)
        camera_to_unit[:3, :3] = camera_rotation(2.0 * i, elevation)
        camera_to_unit[:3, 3] = 3 * camera_to_unit[:3, 2]
        cameras.append(inverse_rigid(camera_to_unit))
    count = len(elevations)
    return Views(
        tuple(range(count)), torch.zeros(count, 64, 64, 4, dtype=torch.uint8),
        torch.from_numpy(np.tile(clip, (count, 1, 1))).float(), torch.from_numpy(np.array(cameras)).float(),
        torch.ones(count),
    )  # fmt: skip


def test_a_camera_sees_the_side_it_looks_at(ball: UvMesh) -> None:
    """From straight above at distance d the rays graze at cos 0.2; by the law of sines that is a circle of height y."""
    seen = seen_faces(ball, views_from([np.pi / 2 - 1e-6]))
    height = ball.vertices[ball.faces][..., 1]
    grazing = np.arccos(0.2)  # between the surface's normal and the way to the camera
    limit = 0.5 * np.cos(grazing - np.arcsin(0.5 / 3 * np.sin(grazing)))
    assert seen[height.min(axis=1) > limit + 0.03].all()
    assert not seen[height.max(axis=1) < limit - 0.03].any()


def test_what_is_hidden_behind_something_is_not_seen() -> None:
    small = trimesh.creation.icosphere(subdivisions=3, radius=0.1).apply_translation((0, -0.6, 0))
    both = trimesh.util.concatenate([trimesh.creation.icosphere(subdivisions=3, radius=0.4), small])
    mesh = unwrap(both.vertices.astype(np.float32), both.faces.astype(np.int32), SIZE)
    seen = seen_faces(mesh, views_from([np.pi / 2 - 1e-6]))
    is_small = mesh.vertices[mesh.faces][..., 1].max(axis=1) < -0.45
    assert is_small.sum() == 1280
    assert not seen[is_small].any()


def test_the_unseen_underside_continues_the_colours_above(ball: UvMesh) -> None:
    """Colour is linear in x: a harmonic function of the plane, so below it should stay near that, without noise."""
    generator = torch.Generator().manual_seed(0)

    def field(points: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(len(points), 1, generator=generator)
        return torch.where(points[:, 1:2] > -0.25, points[:, :1] + 0.5, noise)

    texture, covered = bake(ball, field, SIZE)
    seen = ball.vertices[ball.faces][..., 1].min(axis=1) > -0.2
    filled = dilate(fill_unseen(texture, ball, seen), covered)
    position, _ = bake(ball, lambda points: points, SIZE)
    above, below = covered & (position[..., 1] > -0.1), covered & (position[..., 1] < -0.3)
    assert torch.allclose(filled[above], texture[above], atol=1e-6)
    error = (filled[below][:, 0] - (position[below][:, 0] + 0.5)).abs()
    assert error.max() < 0.16
    assert (texture[below][:, 0] - (position[below][:, 0] + 0.5)).abs().mean() > 0.2


def test_nothing_unseen_changes_nothing(ball: UvMesh) -> None:
    texture = torch.rand(SIZE, SIZE, 3)
    assert fill_unseen(texture, ball, np.ones(len(ball.faces), bool)) is texture
    assert fill_unseen(texture, ball, np.zeros(len(ball.faces), bool)) is texture


def test_harmonic_values_are_the_means_of_their_neighbours() -> None:
    grid = trimesh.creation.icosphere(subdivisions=3)
    known = grid.vertices[:, 1] > -0.3
    values = np.random.default_rng(0).random((len(known), 2))
    filled = values.copy()
    filled[~known] = harmonic(grid.faces.astype(np.int32), known, values)
    for vertex in np.flatnonzero(~known)[::7]:
        assert filled[vertex] == pytest.approx(filled[grid.vertex_neighbors[vertex]].mean(axis=0), abs=1e-4)
    assert filled[~known].min() >= values[known].min() - 1e-9  # the maximum principle
    assert filled[~known].max() <= values[known].max() + 1e-9


def test_a_part_with_nothing_seen_gets_the_mean_colour() -> None:
    faces = np.array([[0, 1, 2], [3, 4, 5]], np.int32)
    known = np.array([True, True, True, False, False, False])
    values = np.array([[0.0], [0.3], [0.6], [9.0], [9.0], [9.0]])
    assert harmonic(faces, known, values)[:, 0] == pytest.approx([0.3, 0.3, 0.3], abs=1e-6)

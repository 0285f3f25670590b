"""Baking: a colour over space comes back from the texture, and gutters never show."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from scipy.ndimage import map_coordinates

from reconstruction.atlas import UvMesh, unwrap
from reconstruction.bake import bake, dilate, to_8bit
from reconstruction.color import linear_to_srgb, srgb_to_linear
from reconstruction.gltf import write_glb
from reconstruction.model import Material, TexturedModel

SIZE = 256


@pytest.fixture(scope="module")
def ball() -> UvMesh:
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    return unwrap(mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32), SIZE)


def rainbow(points: torch.Tensor) -> torch.Tensor:
    """A smooth linear colour in [0, 1] over the cube of side 1."""
    phases = torch.tensor([0.0, 1.0, 2.0])
    return 0.5 + 0.4 * torch.sin(5 * points.roll(1, dims=1) + phases)


def test_the_colour_comes_back_through_the_glb(ball: UvMesh, tmp_path: Path) -> None:
    texture = to_8bit(linear_to_srgb(dilate(*bake(ball, rainbow, SIZE)))).numpy()
    write_glb(TexturedModel(ball, Material(texture), "ball", {}), tmp_path / "ball.glb")

    (read,) = trimesh.load_scene(tmp_path / "ball.glb", process=False).geometry.values()
    points, face = trimesh.sample.sample_surface(read, 20_000, seed=0)
    barycentric = trimesh.triangles.points_to_barycentric(read.triangles[face], points)
    u, v = np.einsum("nc,nci->in", barycentric, read.visual.uv[read.faces[face]])
    image = np.asarray(read.visual.material.baseColorTexture, float) / 255
    pixels = np.stack([(1 - v) * SIZE - 0.5, u * SIZE - 0.5])  # trimesh counts v from the bottom
    seen = np.stack([map_coordinates(image[..., c], pixels, order=1, mode="nearest") for c in range(3)], axis=1)
    expected = linear_to_srgb(rainbow(torch.from_numpy(points).float())).numpy()
    error = np.abs(seen - expected) * 255
    assert error.mean() < 1
    assert np.percentile(error, 99.9) < 4  # of 255; at seams a texel is half outside its chart


def test_no_mip_level_shows_the_background(ball: UvMesh) -> None:
    texture = dilate(*bake(ball, lambda points: torch.ones(len(points), 1), SIZE))
    assert torch.equal(texture, torch.ones(SIZE, SIZE, 1))


def test_charts_keep_their_distance(ball: UvMesh) -> None:
    """Between two charts lies a gutter, so that bilinear lookups and the first mip levels stay within a chart."""
    graph = trimesh.Trimesh(np.pad(ball.uv, ((0, 0), (0, 1))), ball.faces, process=False)
    chart_of_face = np.zeros(len(ball.faces))
    for number, members in enumerate(trimesh.graph.connected_components(graph.face_adjacency, min_len=1)):
        chart_of_face[members] = number
    chart_of_vertex = np.zeros(len(ball.uv))
    chart_of_vertex[ball.faces] = chart_of_face[:, None]
    assert chart_of_face.max() > 3
    texels = ball.uv * SIZE
    for number in range(int(chart_of_face.max()) + 1):
        mine, others = texels[chart_of_vertex == number], texels[chart_of_vertex != number]
        assert np.linalg.norm(mine[:, None] - others[None], axis=2).min() > 3


def test_a_texel_is_the_mean_of_the_surface_it_covers() -> None:
    """A square whose texture is 8 texels wide, under a pattern of half a texel: point samples would see stripes."""
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    vertices = np.pad(uv, ((0, 0), (0, 1)))
    normals = np.tile(np.array([0, 0, 1], np.float32), (4, 1))
    faces = np.array([[0, 2, 1], [0, 3, 2]], np.int32)
    square = UvMesh(vertices, normals, uv, faces, np.arange(4, dtype=np.int32))
    texture, covered = bake(square, lambda points: (points[:, :1] * 16 % 2 >= 1).float(), 8)
    assert covered.all()
    assert torch.allclose(texture, torch.full((8, 8, 1), 0.5))


def test_row_zero_is_v_zero() -> None:
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    vertices = np.pad(uv, ((0, 0), (0, 1)))
    faces = np.array([[0, 2, 1], [0, 3, 2]], np.int32)
    square = UvMesh(vertices, vertices, uv, faces, np.arange(4, dtype=np.int32))
    texture, _ = bake(square, lambda points: points[:, :2], 4)
    centres = torch.tensor([0.125, 0.375, 0.625, 0.875])
    assert torch.allclose(texture[..., 0], centres.expand(4, 4), atol=1e-6)
    assert torch.allclose(texture[..., 1], centres[:, None].expand(4, 4), atol=1e-6)


def test_dilation_copies_the_nearest_texel() -> None:
    texture, covered = torch.zeros(4, 5, 1), torch.zeros(4, 5, dtype=torch.bool)
    texture[1, 1], covered[1, 1] = 0.25, True
    texture[3, 4], covered[3, 4] = 0.75, True
    filled = dilate(texture, covered)[..., 0]
    assert filled[0, 0] == filled[1, 2] == 0.25
    assert filled[2, 4] == filled[3, 3] == 0.75


def test_quantisation_rounds_and_clips() -> None:
    assert to_8bit(torch.tensor([-1.0, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 7.0])).tolist() == [0, 0, 0, 1, 255, 255]


def test_encoding_survives_8_bits() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_8bit(linear_to_srgb(srgb_to_linear(levels.float() / 255))), levels)

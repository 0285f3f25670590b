"""Antialiased silhouettes: true coverage, true derivatives, no preferred side."""

import math

import numpy as np
import pytest
import reference_rasterizer as reference
import scipy.spatial
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reconstruction.rasterizer import get_rasterizer

RASTERIZER = get_rasterizer("numba", torch.device("cpu"))
PROJECTION = reference.perspective(45)


def torus(sections: int = 96) -> tuple[Tensor, Tensor]:
    """Vertices (V, 3) float32 and triangles of a torus in general position, most of its triangles below a pixel."""
    mesh = trimesh.creation.torus(0.7, 0.3, major_sections=sections, minor_sections=sections // 2)
    turn = trimesh.transformations.rotation_matrix(0.83, [0.3, 1.0, -0.4])
    mesh.apply_transform(turn)
    return torch.tensor(np.array(mesh.vertices)).float(), torch.tensor(np.array(mesh.faces), dtype=torch.int32)


def mask(clip: Tensor, triangles: Tensor, size: int) -> Tensor:
    """Antialiased silhouette (H, W) of clip positions (V, 4)."""
    rast = RASTERIZER.rasterize(clip[None], triangles, (size, size))
    return RASTERIZER.antialias((rast[..., 3:] > 0).float(), rast, clip[None], triangles)[0, ..., 0]


def psnr(image: Tensor, truth: Tensor) -> float:
    return -10 * math.log10(float((image - truth).pow(2).mean()))


# Coarse enough for several pixels a triangle, fine enough for several triangles a pixel.
@pytest.mark.parametrize("subdivisions", [3, 5, 6])
def test_area_of_a_sphere_has_the_analytic_value_and_derivative(subdivisions: int) -> None:
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions)
    vertices = torch.tensor(np.array(mesh.vertices)).float()
    triangles = torch.tensor(np.array(mesh.faces), dtype=torch.int32)
    size, ratios, errors = 64, [], []
    for radius in np.linspace(0.5, 0.56, 7):  # pixels quantise one image; the mean of several does not
        scale = torch.tensor(float(radius), requires_grad=True)
        clip = torch.cat((vertices * scale, torch.ones(len(vertices), 1)), dim=1)
        area = mask(clip, triangles, size).sum()
        area.backward()
        # The silhouette of the polyhedron lies a little inside that of the sphere: compare with its own area.
        outline = scipy.spatial.ConvexHull(mesh.vertices[:, :2]).volume * (radius * size / 2) ** 2
        errors.append(float(area.detach()) / outline - 1)
        ratios.append(float(scale.grad) / (2 * outline / radius))
    assert abs(np.mean(errors)) < 1e-3
    assert abs(np.mean(ratios) - 1) < 0.03


@pytest.mark.parametrize("azimuth", [0.0, 41.0, 133.0])
def test_silhouette_is_close_to_supersampled_coverage(azimuth: float) -> None:
    vertices, triangles = torus()
    clip = reference.to_clip(vertices, PROJECTION @ reference.orbit(azimuth, 20, 3.5))
    size = 96
    truth = reference.coverage(clip, triangles, size, size, 8, RASTERIZER.rasterize)
    jagged = (RASTERIZER.rasterize(clip[None], triangles, (size, size))[0, ..., 3] > 0).double()
    assert psnr(mask(clip, triangles, size), truth) > max(38.0, psnr(jagged, truth) + 12)


@settings(max_examples=15, deadline=None)
@given(azimuth=st.floats(0, 360), elevation=st.floats(-60, 60), flip=st.sampled_from(["x", "y"]))
def test_mirrored_scenes_give_mirrored_images_and_gradients(azimuth: float, elevation: float, flip: str) -> None:
    vertices, triangles = torus(32)
    clip = reference.to_clip(vertices, PROJECTION @ reference.orbit(azimuth, elevation, 3.5))
    axis = "xy".index(flip)
    sign = torch.ones(4)
    sign[axis] = -1
    plain, mirrored = clip.clone().requires_grad_(), (clip * sign).requires_grad_()
    weight = torch.rand(48, 48, generator=torch.Generator().manual_seed(0))
    image, mirrored_image = mask(plain, triangles, 48), mask(mirrored, triangles, 48)
    (image * weight).sum().backward()
    (mirrored_image * weight.flip(1 - axis)).sum().backward()
    # A pixel centre exactly on an edge may fall to either side: hardly ever, but not never.
    assert ((mirrored_image.flip(1 - axis) - image).abs() > 1e-4).float().mean() < 2e-3
    differs = ((mirrored.grad * sign - plain.grad).abs() > 1e-2 * plain.grad.abs().max()).any(dim=1)
    assert differs.float().mean() < 1e-2


@pytest.mark.parametrize("side", ["left", "right", "bottom", "top"])
def test_every_side_of_a_square_is_blended_by_its_coverage(side: str) -> None:
    # A 2 × 2 square quad reaching from -a to a in pixels off centre, away from pixel borders on every side.
    size, reach = 16, 0.5 + 0.3 / 8
    corners = [[-reach, -reach, 0, 1], [reach, -reach, 0, 1], [reach, reach, 0, 1], [-reach, reach, 0, 1]]
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32)
    image = mask(torch.tensor(corners), triangles, size)
    first_covered = {"left": image[8, 3], "right": image[8, 12], "bottom": image[3, 8], "top": image[12, 8]}
    assert float(first_covered[side]) == pytest.approx(0.3, abs=1e-5)


def test_gradients_agree_with_finite_differences() -> None:
    # Separate triangles at several depths and perspectives, so that each edge stays a silhouette when it moves.
    generator = torch.Generator().manual_seed(3)
    clip = torch.randn(1, 24, 4, generator=generator)
    clip[..., 3] = 1.5 + 0.3 * torch.randn(1, 24, generator=generator)
    clip[..., 2] *= 0.5
    triangles = torch.arange(24, dtype=torch.int32).reshape(8, 3)
    rast = RASTERIZER.rasterize(clip, triangles, (40, 56))
    color = torch.rand(1, 40, 56, 3, generator=generator)
    weight = torch.randn(1, 40, 56, 3, generator=generator)

    def loss(color: Tensor, clip: Tensor) -> Tensor:
        return (RASTERIZER.antialias(color, rast, clip, triangles).double() * weight).sum().detach()

    inputs = (color.clone().requires_grad_(), clip.clone().requires_grad_())
    image = RASTERIZER.antialias(inputs[0], rast, inputs[1], triangles)
    color_grad, clip_grad = torch.autograd.grad((image * weight).sum(), inputs)
    for _ in range(5):
        step = torch.randn(color.shape, generator=generator)
        expected = (loss(color + step, clip) - loss(color - step, clip)) / 2  # linear in the colours
        assert float((color_grad * step).sum()) == pytest.approx(float(expected), rel=1e-3, abs=1e-3)
    obtained, expected_values = [], []
    for vertex in range(24):
        for axis in (0, 1, 3):
            step = torch.zeros_like(clip)
            step[0, vertex, axis] = 1e-4
            expected_values.append(float(loss(color, clip + step) - loss(color, clip - step)) / 2e-4)
            obtained.append(float(clip_grad[0, vertex, axis]))
    error = np.abs(np.subtract(obtained, expected_values))
    # The visible triangles are held, so the loss jumps where a crossing leaves its pair of pixels: a few differences
    # straddle such a jump.
    scale = np.median(np.abs(expected_values))
    assert np.mean(error < 0.02 * scale) > 0.9
    assert scale > 1


def test_inside_a_surface_nothing_changes() -> None:
    vertices, triangles = torus()
    clip = reference.to_clip(vertices, PROJECTION @ reference.orbit(41, 20, 3.5))[None]
    rast = RASTERIZER.rasterize(clip, triangles, (64, 64))
    normals = torch.nn.functional.normalize(vertices, dim=1)[None].contiguous()
    color = RASTERIZER.interpolate(normals, rast, triangles)
    changed = (RASTERIZER.antialias(color, rast, clip, triangles) != color).any(dim=-1)[0]
    depth = torch.where(rast[0, ..., 3] > 0, rast[0, ..., 2], 2.0)
    jump = torch.zeros(64, 64, dtype=torch.bool)
    for axis in (0, 1):
        differs = depth.diff(dim=axis).abs() > 0.004  # far more than the slope of the visible surface a pixel
        jump |= torch.cat((differs, torch.zeros_like(differs.narrow(axis, 0, 1))), dim=axis)
        jump |= torch.cat((torch.zeros_like(differs.narrow(axis, 0, 1)), differs), dim=axis)
    assert changed.any()
    assert not (changed & ~jump).any()


def test_edges_against_a_nearer_but_receding_surface_are_blended() -> None:
    # A wall recedes steeply to the right behind a slanting post. Left of the post the wall's pixel is the nearer one,
    # yet the edge between them is the post's.
    wall = [[-0.6, -3.0, 2.15], [1.4, -3.0, -7.85], [1.4, 3.0, -7.85], [-0.6, 3.0, 2.15]]
    post = [[-0.17, -0.9, 0.3], [0.43, -0.9, 0.3], [0.37, 0.9, 0.3], [-0.23, 0.9, 0.3]]
    vertices = torch.tensor(wall + post)
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]], dtype=torch.int32)
    clip = reference.to_clip(vertices, PROJECTION @ reference.orbit(0, 0, 3.0))[None]
    white_post = torch.tensor([0.0] * 4 + [1.0] * 4)[None, :, None].contiguous()

    def render(size: int) -> tuple[Tensor, Tensor]:
        rast = RASTERIZER.rasterize(clip, triangles, (size, size))
        return rast, RASTERIZER.interpolate(white_post, rast, triangles)

    size, samples = 24, 16
    rast, color = render(size)
    fine = render(size * samples)[1].reshape(size, samples, size, samples).mean(dim=(1, 3))
    image = RASTERIZER.antialias(color, rast, clip, triangles)[0, ..., 0]
    sides = slice(6, 18)  # rows that show the post's sides only
    left = slice(0, 12)
    depth = rast[0, sides, left, 2]
    first_of_post = color[0, sides, left, 0].argmax(dim=1)
    rows = torch.arange(12)
    assert (depth[rows, first_of_post - 1] < depth[rows, first_of_post]).any()
    assert (image[sides] - fine[sides]).abs().max() < 0.1


def test_vertices_behind_the_eye_give_finite_images_and_gradients() -> None:
    vertices, triangles = torus(24)
    clip = reference.to_clip(vertices, PROJECTION @ reference.orbit(41, 20, 0.5)).requires_grad_()
    assert (clip[:, 3] < 0).any()
    image = mask(clip, triangles, 32)
    image.sum().backward()
    assert torch.isfinite(image).all()
    assert torch.isfinite(clip.grad).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_tangled_meshes_do_no_harm(seed: int) -> None:
    # Random indices: repeated corners, edges of many triangles, no sense of inside; and another mesh's topology.
    generator = torch.Generator().manual_seed(seed)
    triangles = torch.randint(0, 12, (40, 3), generator=generator, dtype=torch.int32)
    clip = torch.randn(1, 12, 4, generator=generator)
    clip[..., 3] = clip[..., 3].abs() + 0.1
    clip.requires_grad_()
    rast = RASTERIZER.rasterize(clip, triangles, (24, 24))
    color = torch.rand(1, 24, 24, 2, generator=generator)
    for source in (triangles, triangles[torch.randperm(40, generator=generator)]):
        image = RASTERIZER.antialias(color, rast, clip, triangles, RASTERIZER.build_topology(source))
        (grad,) = torch.autograd.grad(image.sum(), clip, retain_graph=True)
        assert torch.isfinite(image).all()
        assert torch.isfinite(grad).all()


def test_an_image_of_little_else_than_silhouettes_is_blended_whole() -> None:
    # A curtain of separate slivers, one every two pixels: more crossings than the first guess at their number.
    size = 128
    left = (torch.arange(size // 2) * 2 + 0.3) * 2 / size - 1
    width = 0.8 * 2 / size
    corners = torch.stack((left, left + width, left + width, left), dim=1).reshape(-1)
    heights = torch.tensor([-2.0, -2.0, 2.0, 2.0]).repeat(size // 2)
    clip = torch.stack((corners, heights, torch.zeros_like(corners), torch.ones_like(corners)), dim=1)
    first = torch.arange(size // 2, dtype=torch.int32)[:, None] * 4
    quads = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32).reshape(1, 6)
    triangles = (first + quads).reshape(-1, 3)
    image = mask(clip, triangles, size)
    assert float(image.mean()) == pytest.approx(0.4, abs=0.3 / size)


def test_topology_pairs_the_half_edges_of_a_closed_mesh() -> None:
    _, triangles = torus(24)
    opposite = RASTERIZER.build_topology(triangles).long()
    assert (opposite >= 0).all()
    half_edges = torch.arange(triangles.numel()).reshape(-1, 3)
    assert (opposite.reshape(-1)[opposite] == half_edges).all()
    ends = torch.stack((triangles.roll(-1, 1), triangles.roll(-2, 1)), dim=-1).reshape(-1, 2).sort(dim=1).values
    assert (ends[opposite.reshape(-1)] == ends).all()


def test_topology_knows_boundaries_and_edges_of_three_triangles() -> None:
    triangles = torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4]], dtype=torch.int32)
    opposite = RASTERIZER.build_topology(triangles)
    assert opposite.tolist() == [[-1, -1, 5], [-1, -1, 2], [-1, -1, -1]]
    assert RASTERIZER.build_topology(torch.zeros(0, 3, dtype=torch.int32)).shape == (0, 3)


def test_topology_of_another_mesh_is_refused() -> None:
    vertices, triangles = torus(24)
    clip = reference.to_clip(vertices, PROJECTION @ reference.orbit(41, 20, 3.5))[None]
    rast = RASTERIZER.rasterize(clip, triangles, (8, 8))
    with pytest.raises(ValueError, match="topology: made for"):
        RASTERIZER.antialias(rast, rast, clip, triangles, RASTERIZER.build_topology(triangles[:-1]))

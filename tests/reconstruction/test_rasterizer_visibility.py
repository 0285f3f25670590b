"""Rasterisation and interpolation against a float64 reference, on friendly and on hostile triangles."""

import numpy as np
import pytest
import reference_rasterizer as reference
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from reconstruction.rasterizer import get_rasterizer
from reconstruction.rasterizer.derivatives import attribute_derivatives
from scan2twin.errors import ConfigError

CPU = torch.device("cpu")
RASTERIZER = get_rasterizer("numba", CPU)


def torus_clip(azimuth: float = 30.0, distance: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A torus, which hides parts of itself: clip positions (V, 4) float64 and triangles."""
    mesh = trimesh.creation.torus(0.7, 0.3, major_sections=20, minor_sections=10)
    matrix = reference.perspective(45) @ reference.orbit(azimuth, 35, distance)
    vertices = torch.tensor(np.array(mesh.vertices))
    return reference.to_clip(vertices, matrix), torch.tensor(np.array(mesh.faces), dtype=torch.int32)


def assert_same_rast(clip: torch.Tensor, triangles: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Rasterise float64 clip positions (V, 4) both ways, compare, and return the kernel's result (H, W, 4)."""
    clip = clip.float().double()
    expected = reference.rasterize(clip, triangles, height, width)
    rast = RASTERIZER.rasterize(clip.float()[None], triangles, (height, width))[0]
    same = rast[..., 3] == expected[..., 3]
    # Float32 depth and pixel centres that lie on an edge may go either way, a handful of pixels at most.
    assert same.double().mean() >= 0.999
    torch.testing.assert_close(rast[same].double(), expected[same], atol=1e-4, rtol=0)
    return rast


@pytest.mark.parametrize(("height", "width"), [(48, 48), (36, 61)])
def test_agrees_with_reference_on_a_self_occluding_mesh(height: int, width: int) -> None:
    clip, triangles = torus_clip()
    rast = assert_same_rast(clip, triangles, height, width)
    assert 0.1 < (rast[..., 3] > 0).float().mean() < 0.9


def test_agrees_with_reference_when_triangles_are_smaller_than_pixels() -> None:
    clip, triangles = torus_clip(distance=12.0)
    assert_same_rast(clip, triangles, 32, 32)


@pytest.mark.parametrize("distance", [0.9, 0.5, 0.0])
def test_agrees_with_reference_when_the_camera_is_close_or_inside(distance: float) -> None:
    # Triangles cross the near plane and lie behind the eye.
    clip, triangles = torus_clip(distance=max(distance, 1e-3))
    assert (clip[:, 3] <= 0).any() or distance > 0.6
    assert_same_rast(clip, triangles, 40, 40)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), spread=st.sampled_from([0.05, 1.0, 30.0]))
def test_agrees_with_reference_on_random_homogeneous_triangles(seed: int, spread: float) -> None:
    # Any signs of z and w: huge, tiny, clipped and behind the eye.
    generator = torch.Generator().manual_seed(seed)
    clip = torch.randn(9, 4, generator=generator, dtype=torch.float64) * spread
    clip[:, 2] *= 0.5
    clip = clip.float().double()
    triangles = torch.arange(9, dtype=torch.int32).reshape(3, 3)
    expected = reference.rasterize(clip, triangles, 16, 24)
    rast = RASTERIZER.rasterize(clip.float()[None], triangles, (16, 24))[0]
    differing = int((rast[..., 3] != expected[..., 3]).sum())
    assert differing <= 1


@pytest.mark.parametrize(("height", "width"), [(64, 64), (37, 53)])
def test_triangles_that_share_edges_leave_no_holes(height: int, width: int) -> None:
    # A fan whose centre and edges pass through pixel centres, covering the whole image.
    angles = np.linspace(0, 2 * np.pi, 33)
    ring = np.stack([4 * np.cos(angles), 4 * np.sin(angles)], axis=1)
    points = np.concatenate([[[1 / width, 1 / height]], ring])
    clip = torch.tensor(np.concatenate([points, np.zeros((34, 1)), np.ones((34, 1))], axis=1), dtype=torch.float32)
    triangles = torch.tensor([[0, i, i + 1] for i in range(1, 33)], dtype=torch.int32)
    rast = RASTERIZER.rasterize(clip[None], triangles, (height, width))
    assert (rast[..., 3] > 0).all()


@pytest.mark.parametrize(
    "corners",
    [
        [[0, 0, 0, 1], [0, 0, 0, 1], [0.5, 0.5, 0, 1]],
        [[-1, -1, 0, 1], [0, 0, 0, 1], [1, 1, 0, 1]],
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[float("nan"), 0, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1]],
        [[float("inf"), 0, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1]],
        [[-1, -1, 0, -1], [3, -1, 0, -1], [-1, 3, 0, -1]],
        [[-1, -1, 2, 1], [3, -1, 2, 1], [-1, 3, 2, 1]],
        [[-1, -1, -2, 1], [3, -1, -2, 1], [-1, 3, -2, 1]],
    ],
    ids=["point", "line", "zero", "nan", "inf", "behind the eye", "beyond far", "before near"],
)
def test_triangles_that_cannot_be_seen_draw_nothing(corners: list[list[float]]) -> None:
    clip = torch.tensor([corners], dtype=torch.float32)
    rast = RASTERIZER.rasterize(clip, torch.tensor([[0, 1, 2]], dtype=torch.int32), (16, 16))
    assert (rast == 0).all()


def test_a_huge_triangle_covers_everything() -> None:
    clip = torch.tensor([[[-1e30, -1e30, 0, 1], [1e30, -1e30, 0, 1], [0, 1e30, 0, 1]]])
    rast = RASTERIZER.rasterize(clip, torch.tensor([[0, 1, 2]], dtype=torch.int32), (16, 16))
    assert (rast[..., 3] == 1).all()


def test_row_zero_is_the_bottom_and_both_sides_are_drawn() -> None:
    clip = torch.tensor([[[-1.0, -1, 0, 1], [1, -1, 0, 1], [0, 0, 0, 1]]])
    for order in ([0, 1, 2], [0, 2, 1]):
        rast = RASTERIZER.rasterize(clip, torch.tensor([order], dtype=torch.int32), (8, 8))[0]
        assert rast[0, 4, 3] == 1
        assert (rast[4:, :, 3] == 0).all()


def test_views_of_a_batch_are_independent() -> None:
    clips = torch.stack([torus_clip(azimuth)[0].float() for azimuth in (0.0, 80.0)])
    triangles = torus_clip()[1]
    attributes = torch.rand(2, clips.shape[1], 3)
    together = RASTERIZER.interpolate(attributes, RASTERIZER.rasterize(clips, triangles, (24, 24)), triangles)
    for view in range(2):
        rast = RASTERIZER.rasterize(clips[view : view + 1], triangles, (24, 24))
        alone = RASTERIZER.interpolate(attributes[view : view + 1], rast, triangles)
        torch.testing.assert_close(together[view], alone[0], rtol=0, atol=0)


def test_interpolation_and_its_gradients_agree_with_reference() -> None:
    clip64, triangles = torus_clip(distance=4.0)
    clip = clip64.float().requires_grad_()
    attributes = torch.rand(len(clip), 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weight = torch.randn(24, 24, 5, generator=torch.Generator().manual_seed(2))
    rast = RASTERIZER.rasterize(clip[None], triangles, (24, 24))
    image = RASTERIZER.interpolate(attributes[None], rast, triangles)[0]
    grads = torch.autograd.grad((image * weight).sum(), (attributes, clip))

    clip_reference = clip.detach().double().requires_grad_()
    attributes_reference = attributes.detach().double().requires_grad_()
    expected = reference.interpolate(clip_reference, triangles, attributes_reference, rast[0, ..., 3].detach())
    expected_grads = torch.autograd.grad((expected * weight).sum(), (attributes_reference, clip_reference))

    torch.testing.assert_close(image.double(), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(grads[0].double(), expected_grads[0], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(
        grads[1].double(), expected_grads[1], atol=1e-3 * expected_grads[1].abs().max(), rtol=1e-2
    )


def test_shared_attributes_collect_the_gradients_of_every_view() -> None:
    clips = torch.stack([torus_clip(azimuth)[0].float() for azimuth in (0.0, 80.0)])
    triangles = torus_clip()[1]
    rast = RASTERIZER.rasterize(clips, triangles, (24, 24))
    shared = torch.rand(1, clips.shape[1], 2, requires_grad=True)
    (grad,) = torch.autograd.grad(RASTERIZER.interpolate(shared, rast, triangles).sum(), shared)
    apart = shared.detach().expand(2, -1, -1).clone().requires_grad_()
    (expected,) = torch.autograd.grad(RASTERIZER.interpolate(apart, rast, triangles).sum(), apart)
    torch.testing.assert_close(grad[0], expected.sum(dim=0))


def test_attribute_derivatives_are_differences_between_pixels() -> None:
    # One large slanted triangle: neighbours differ by the derivative up to the perspective's curvature.
    clip = torch.tensor([[[-1.5, -1.2, 0.0, 1.0], [1.4, -1.0, 0.2, 1.3], [0.2, 1.6, 0.4, 1.1]]])
    triangles = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    uv = torch.tensor([[[0.0, 0.0], [1.0, 0.2], [0.3, 1.0]]])
    size = 128
    rast = RASTERIZER.rasterize(clip, triangles, (size, size))
    image = RASTERIZER.interpolate(uv, rast, triangles)[0]
    derivatives = attribute_derivatives(uv, rast, clip, triangles)[0]
    window = slice(50, 70)
    by_x = (image[window, 51:71] - image[window, 49:69]) / 2
    by_y = (image[51:71, window] - image[49:69, window]) / 2
    torch.testing.assert_close(derivatives[window, window][..., 0::2], by_x, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(derivatives[window, window][..., 1::2], by_y, atol=1e-6, rtol=1e-3)


def test_wrong_arguments_are_refused_before_a_kernel_reads_them() -> None:
    clip, triangles = torus_clip()
    with pytest.raises(ValueError, match="indices must lie in"):
        RASTERIZER.rasterize(clip.float()[None], triangles + 1, (8, 8))
    with pytest.raises(ValueError, match="clip_positions: expected float32"):
        RASTERIZER.rasterize(clip[None], triangles, (8, 8))
    with pytest.raises(ValueError, match="triangles: expected int32"):
        RASTERIZER.rasterize(clip.float()[None], triangles.long(), (8, 8))


def test_back_ends_that_cannot_work_say_why() -> None:
    with pytest.raises(ConfigError, match="expected one of auto, numba, nvdiffrast"):
        get_rasterizer("opengl", CPU)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="choose numba"):
        get_rasterizer("nvdiffrast", CPU)
    with pytest.raises(ConfigError, match="choose nvdiffrast"):
        get_rasterizer("numba", torch.device("cuda"))

import numpy as np
import pytest
import trimesh
from PIL import Image

from reconstruction.benchmark import KnownMesh, benchmark_kernels, benchmark_method, spiral
from scan2twin.config import ReconstructConfig
from scan2twin.errors import InputError

TOP, BOTTOM = (220, 60, 40), (40, 90, 200)


@pytest.fixture
def ball(tmp_path):
    """A ball of radius 3 whose upper half is red and whose lower half is blue."""
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=3.0).apply_translation([5, 1, -2])
    height = (mesh.vertices[:, 1] - 1) / 3
    uv = np.stack([np.full(len(height), 0.5), 0.5 + 0.49 * height], axis=1)
    image = Image.new("RGB", (4, 64), TOP)
    image.paste(BOTTOM, (0, 32, 4, 64))
    mesh.visual = trimesh.visual.TextureVisuals(uv=uv, image=image)
    mesh.export(tmp_path / "ball.obj")
    return KnownMesh(tmp_path / "ball.obj")


def test_views_show_the_mesh_upright_and_at_its_size(ball):
    views = ball.views(np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.001]]), 64)
    side, above = views.images.numpy()
    radius = 32 * np.tan(np.arcsin(0.5 / 2)) / np.tan(np.radians(20))  # outline of a ball of radius 1/2 from 2
    assert (side[..., 3] / 255).sum() == pytest.approx(np.pi * radius**2, rel=0.02)
    assert np.abs(side[45, 32, :3].astype(int) - TOP).max() <= 3  # row 0 is the bottom
    assert np.abs(side[19, 32, :3].astype(int) - BOTTOM).max() <= 3
    assert np.abs(above[32, 32, :3].astype(int) - TOP).max() <= 3


def test_directions_cover_the_sphere():
    directions = spiral(200)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    assert np.linalg.norm(directions.mean(axis=0)) < 0.01


def test_the_benchmark_reports_where_it_was_asked_to(ball):
    config = ReconstructConfig(iterations=40, resolution=64, grid=16)
    figures = []
    benchmark_method(ball, config, [20, 40], figures.append)
    assert [f.iterations for f in figures] == [20, 40]
    assert figures[1].cpu_seconds > figures[0].cpu_seconds
    assert figures[1].heldout_psnr > figures[0].heldout_psnr
    assert figures[1].mask_iou > 0.93
    assert figures[1].chamfer_percent < 1
    names = [kernel.kernel for kernel in benchmark_kernels(ball, config)]
    assert names[-1] == "whole iteration"
    assert len(names) == 5


def test_a_mesh_without_texture_is_refused(tmp_path):
    trimesh.creation.box([1, 1, 1]).export(tmp_path / "box.obj")
    with pytest.raises(InputError, match=r"box\.obj: has no texture"):
        KnownMesh(tmp_path / "box.obj")

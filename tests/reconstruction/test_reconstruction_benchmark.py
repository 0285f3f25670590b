import json

import numpy as np
import pytest
import trimesh
from PIL import Image
from typer.testing import CliRunner
from views_of_a_ball import camera_centres, write_dataset

from reconstruction import benchmark
from reconstruction.benchmark import KnownMesh, spiral
from scan2twin.cli.main import app
from scan2twin.config import resolve_config
from scan2twin.errors import InputError
from scan2twin.progress import LogProgress

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


def test_views_show_the_mesh_upright_and_at_its_size(ball, tmp_path):
    dataset = ball.write_dataset(tmp_path / "set", np.array([[0.0, 0.0, 1.0]]), np.array([[0.0, 1.0, 0.001]]), 64)
    assert [frame.split for frame in dataset.frames] == ["train", "heldout"]
    side, above = (np.asarray(Image.open(tmp_path / "set" / frame.image)).astype(int) for frame in dataset.frames)
    mask = np.asarray(Image.open(tmp_path / "set" / dataset.frames[0].mask))
    radius = 32 * np.tan(np.arcsin(0.5 / 2)) / np.tan(np.radians(20))  # outline of a ball of radius 1/2 from 2
    assert (mask / 255).sum() == pytest.approx(np.pi * radius**2, rel=0.02)
    assert np.abs(side[18, 32] - TOP).max() <= 3
    assert np.abs(side[44, 32] - BOTTOM).max() <= 3
    assert np.abs(above[32, 32] - TOP).max() <= 3


def test_chamfer_distance_of_a_larger_ball_is_the_difference_of_the_radii(ball):
    larger = trimesh.creation.icosphere(subdivisions=5, radius=0.51)
    same = trimesh.creation.icosphere(subdivisions=5, radius=0.5)
    difference = 100 * 0.01 / np.linalg.norm(ball.mesh.extents)
    found = [ball.chamfer_percent(mesh.vertices, mesh.faces) for mesh in (larger, same, ball.mesh)]
    assert found[0] - found[1] == pytest.approx(difference, rel=0.3)
    assert found[2] < 1e-6


def test_directions_cover_the_sphere():
    directions = spiral(200)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    assert np.linalg.norm(directions.mean(axis=0)) < 0.01


def test_the_whole_method_and_its_kernels_are_measured(ball, monkeypatch):
    monkeypatch.setattr(benchmark, "TRAIN_VIEWS", 16)
    monkeypatch.setattr(benchmark, "HELDOUT_VIEWS", 2)
    small = {"reconstruct": {"iterations": 60, "resolution": 64, "grid": 16, "appearance": "flash"}}
    config = resolve_config("draft", {**small, "export": {"texture_size": 128, "refine_iterations": 20}})
    figures = benchmark.benchmark_known_mesh(ball, config, LogProgress())
    assert (figures.iterations, figures.resolution, figures.grid, figures.texture_size) == (60, 64, 16, 128)
    assert figures.heldout_psnr > 24
    assert figures.heldout_ssim > 0.85
    assert figures.mask_iou > 0.96
    assert figures.chamfer_percent < 1
    assert figures.albedo_psnr > 18
    assert figures.reconstruct_cpu_seconds > 0
    assert figures.peak_memory_mb > 100
    kernels = benchmark.benchmark_kernels(ball, config.reconstruct)
    names = [kernel.kernel for kernel in kernels]
    assert names[-1] == "whole iteration at 128², environment"
    assert sum(name.startswith("antialias at 256²") for name in names) == 2
    assert all(kernel.milliseconds > 0 for kernel in kernels)


def test_a_dataset_folder_is_measured_from_the_command_line(tmp_path):
    write_dataset(tmp_path, camera_centres(12))
    small = {
        "reconstruct": {"iterations": 30, "resolution": 64, "grid": 16, "appearance": "flash"},
        "export": {"texture_size": 64, "refine_iterations": 5},
    }
    options = ["--preset", "draft", "--config", json.dumps(small)]
    result = CliRunner().invoke(app, ["benchmark", "reconstruct", str(tmp_path), *options, "--json"])
    assert result.exit_code == 0, result.output
    method = json.loads(result.stdout)["method"]
    assert method["dataset"] == "ball"
    assert method["iterations"] == 30
    assert method["heldout_psnr"] > 15
    assert method["chamfer_percent"] is None
    assert "held" in result.stderr


def test_a_folder_that_is_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a scan"):
        CliRunner().invoke(app, ["benchmark", "reconstruct", str(tmp_path)], catch_exceptions=False)


def test_a_mesh_without_texture_is_refused(tmp_path):
    trimesh.creation.box([1, 1, 1]).export(tmp_path / "box.obj")
    with pytest.raises(InputError, match=r"box\.obj: has no texture"):
        KnownMesh(tmp_path / "box.obj")

"""The benchmark of poses: its arithmetic, the capture it draws, and its table on that capture."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from preprocessing import synthetic_capture
from preprocessing.benchmark import Benchmark, compare_poses
from preprocessing.synthetic_capture import BLURRED, JUMPS, make_synthetic_capture, orbit
from scan2twin.capture.reader import check_bundle, read_capture
from scan2twin.cli.main import app
from scan2twin.config import resolve_config
from scan2twin.errors import InputError
from scan2twin.progress import LogProgress

MakeCapture = Callable[..., Path]


FRAMES = 28  # instead of the 40 that the command draws


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_capture, "FRAMES", FRAMES)
        return make_synthetic_capture(tmp_path_factory.mktemp("drawn") / "box")


class TestComparePoses:
    @settings(deadline=None, max_examples=30)
    @given(st.integers(0, 1000), st.floats(0.5, 2.0))
    def test_where_the_frame_lies_does_not_count_and_scale_is_told(self, seed: int, scale: float) -> None:
        rng = np.random.default_rng(seed)
        change = np.eye(4)
        change[:3, :3], change[:3, 3] = Rotation.random(rng=rng).as_matrix(), rng.normal(size=3)
        true = orbit()
        scaled = true.copy()
        scaled[:, :3, 3] *= scale
        position, degrees, found = compare_poses(change @ scaled, true)
        off_centre = np.linalg.norm(true[:, :3, 3] - true[:, :3, 3].mean(axis=0), axis=1)
        np.testing.assert_allclose(position, abs(scale - 1) * off_centre, atol=1e-9)
        np.testing.assert_allclose(degrees, 0, atol=1e-5)
        assert found == pytest.approx(scale)

    def test_one_turned_camera_is_told(self) -> None:
        found = orbit()
        found[3, :3, :3] = found[3, :3, :3] @ Rotation.from_euler("x", 2, degrees=True).as_matrix()
        _, degrees, _ = compare_poses(found, orbit())
        assert degrees[3] == pytest.approx(2)
        assert np.delete(degrees, 3).max() < 1e-6


class TestDrawnCapture:
    def test_its_masks_are_where_its_poses_project_its_mesh(self, drawn: Path) -> None:
        assert check_bundle(drawn / "capture") == []
        capture = read_capture(drawn / "capture")
        corners = trimesh.load_mesh(drawn / "truth/mesh.obj").bounding_box.vertices
        truth = json.loads((drawn / "truth/poses.json").read_text())["frames"]
        for frame, known in list(zip(capture.frames, truth, strict=True))[::6]:
            world_to_camera = np.linalg.inv(np.array(known["camera_to_anchor"]))
            x, y, z = (np.c_[corners, np.ones(8)] @ world_to_camera.T)[:, :3].T
            K = frame.intrinsics
            u, v = K.cx + K.fx * x / -z, K.cy - K.fy * y / -z
            mask = np.asarray(Image.open(drawn / f"truth/masks/{frame.i:06d}.png")) > 127
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            bounds = [columns[0], columns[-1] + 1, rows[0], rows[-1] + 1]
            np.testing.assert_allclose(bounds, [u.min(), u.max(), v.min(), v.max()], atol=1.01)

    def test_each_stage_brings_its_poses_nearer_to_the_truth(self, drawn: Path, tmp_path: Path) -> None:
        benchmark = Benchmark(drawn, tmp_path / "work", resolve_config("draft", {}), LogProgress())
        raw, compensated, refined = benchmark.pose_table()
        assert [row.poses for row in (raw, compensated, refined)] == ["raw", "compensated", "refined"]
        assert raw.position_worst > 100 * min(JUMPS.values()) / 0.7 * 0.5  # the jump is still in it
        assert compensated.position_worst < 1
        assert refined.position_median < 0.8 * compensated.position_median
        assert refined.degrees_median < 0.6 * compensated.degrees_median
        assert refined.scale == pytest.approx(1, abs=0.002)
        assert list(compensated.dropped) == [i for i in BLURRED if i < FRAMES]


def test_a_truth_that_lacks_files_is_refused_by_name(drawn: Path, tmp_path: Path) -> None:
    source = shutil.copytree(drawn, tmp_path / "box")
    (source / "truth/mesh.obj").unlink()
    with pytest.raises(InputError, match=r"truth: no mesh\.obj; see docs"):
        Benchmark(source, tmp_path / "work", resolve_config("draft", {}), LogProgress())
    assert not (tmp_path / "work").exists()
    result = CliRunner().invoke(app, ["benchmark", "preprocessing", str(source)])
    assert isinstance(result.exception, InputError)


def test_without_truth_there_is_nothing_to_compare_with(make_capture: MakeCapture, tmp_path: Path) -> None:
    benchmark = Benchmark(make_capture(), tmp_path / "work", resolve_config("draft", {}), LogProgress())
    assert benchmark.pose_table() == []
    assert benchmark.mask_table(None) == []
    assert list(benchmark.effect_table()) == []
    assert any("refine_poses: poses were not refined" in warning for warning in benchmark.warnings)

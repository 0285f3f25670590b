"""Every stage on the small rendered capture, against its truth."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from reconstruction.level_benchmark import measure_levels
from scan2twin.benchmark import GeometryFigures, compare_to_truth
from scan2twin.capture.models import CaptureHeader
from scan2twin.capture.reader import read_capture
from scan2twin.capture.writer import write_capture
from scan2twin.config import resolve_config
from scan2twin.errors import MissingArtifactError
from scan2twin.progress import LogProgress
from scan2twin.runner import StageRun, fetch_model, fetch_outputs, import_capture, run_pipeline
from scan2twin.stages import STAGES
from scan2twin.store.directory import DirectoryStore

SPOT = Path(__file__).parents[1] / "data/spot-capture"

# The smallest work that still gives a cow: what is tested is that the stages fit together, not how good they get.
SMALL: dict[str, dict[str, Any]] = {
    "condition": {"long_side": 400},
    "mask": {"resolution": 160},
    "reconstruct": {"iterations": 120, "resolution": 160, "grid": 32},
    "export": {"texture_size": 256, "turntable_frames": 4, "turntable_size": 128},
}


def every_second_frame(source: Path, out: Path) -> Path:
    """Write the capture with every second frame only: half the time, and all sides are still seen."""
    capture = read_capture(source)
    frames = capture.frames[::2]
    (out / "images").mkdir(parents=True)
    for frame in frames:
        shutil.copyfile(source / frame.file, out / frame.file)
    header = CaptureHeader(**{name: getattr(capture.document, name) for name in CaptureHeader.model_fields})
    write_capture(out, header, frames)
    return out


class Outcome:
    """The model, and what the first and the second run did."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = store = DirectoryStore(folder / "store")
        self.config = config = resolve_config("draft", SMALL)
        capture_id = import_capture(store, every_second_frame(SPOT / "capture", folder / "capture"))
        self.first: list[StageRun] = run_pipeline(store, capture_id, config, LogProgress())
        self.second: list[StageRun] = run_pipeline(store, capture_id, config, LogProgress())
        self.model = folder / "model"
        fetch_model(store, capture_id, self.model)
        self.report: dict[str, Any] = json.loads((self.model / "report.json").read_text())
        self.geometry: GeometryFigures = compare_to_truth(self.model, SPOT / "truth")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return Outcome(tmp_path_factory.mktemp("end-to-end"))


def test_the_model_has_the_shape_and_the_metric_size_of_the_truth(outcome: Outcome) -> None:
    assert outcome.geometry.chamfer_percent < 2.5
    assert outcome.geometry.size_error_percent < 5


def test_the_model_lies_where_the_object_lay(outcome: Outcome) -> None:
    assert outcome.geometry.alignment_mm < 10
    assert outcome.geometry.alignment_degrees < 3


def test_the_model_looks_like_views_it_has_not_seen(outcome: Outcome) -> None:
    assert outcome.report["heldout_psnr_foreground"] > 17
    assert outcome.report["mask_iou_heldout"] > 0.85


def test_a_second_run_finds_every_stage_done(outcome: Outcome) -> None:
    assert [run.skipped for run in outcome.first] == [False] * len(STAGES)
    assert [run.skipped for run in outcome.second] == [True] * len(STAGES)
    assert [a.manifest.fingerprint for a in outcome.first] == [b.manifest.fingerprint for b in outcome.second]


def test_the_report_holds_what_scripts_read(outcome: Outcome) -> None:
    report = outcome.report
    for name in ("heldout_psnr", "heldout_psnr_foreground", "mask_iou_heldout", "peak_memory_mb"):
        assert math.isfinite(report[name]), name
    assert report["vertices"] > 500
    assert report["triangles"] > 1000
    assert isinstance(report["warnings"], list)
    assert set(report["stage_seconds"]) >= {stage.name for stage in STAGES if not stage.publishes}
    for name in ("model.glb", "model.json", "report.json", "preview.png"):
        assert (outcome.model / name).stat().st_size > 0, name


def test_the_example_of_the_python_page_runs(
    outcome: Outcome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands in docs/python.md, on the capture above; its stages are committed, so the store answers at once."""
    page = (Path(__file__).parents[2] / "docs/python.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    names = {
        "capture": outcome.folder / "capture", "out": tmp_path / "model", "quick": SMALL,
        "store": str(outcome.folder / "store"),
    }  # fmt: skip
    exec(compile(example, "docs/python.md", "exec"), names)
    assert "closed: True" in capsys.readouterr().out
    assert (tmp_path / "model" / "report.html").is_file()
    assert (tmp_path / "model" / "deviations.glb").is_file()


def test_the_files_that_were_written_are_as_good_as_the_report_says(outcome: Outcome, tmp_path: Path) -> None:
    """The GLBs read back and drawn at the held-out cameras; the level differs by its JPEG textures here."""
    stages = ("mask", "reconstruct", "export")
    inputs = fetch_outputs(outcome.store, outcome.report["capture_id"], outcome.config, stages, tmp_path)
    full, web = measure_levels(inputs, LogProgress())
    assert full.heldout_psnr_foreground == pytest.approx(outcome.report["heldout_psnr_foreground"], abs=0.02)
    assert (full.file, full.loss, full.triangles) == ("model.glb", 0, outcome.report["triangles"])
    assert web.heldout_psnr_foreground == pytest.approx(full.heldout_psnr_foreground - web.loss)
    assert abs(web.loss) < 0.5
    assert web.megabytes < full.megabytes
    with pytest.raises(MissingArtifactError, match="no committed output of stage mask"):
        fetch_outputs(
            outcome.store, outcome.report["capture_id"], resolve_config("high", {}), stages, tmp_path / "none"
        )

"""The runner against a real store, with small stages: what runs, what is skipped, what is left after a failure."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_pipeline
from tiny_pipeline import CALLS_VARIABLE, HOLD_VARIABLE, NAMES, write_modules

from scan2twin import stages
from scan2twin.config import PipelineConfig, resolve_config
from scan2twin.errors import InputError, IntegrityError, MissingArtifactError, ResourceError, StoreError
from scan2twin.logs import ContextFilter
from scan2twin.progress import LogProgress
from scan2twin.runner import (
    StageRun,
    fetch_model,
    find_capture,
    fingerprints,
    import_capture,
    output_folder,
    run_pipeline,
    run_stage,
)
from scan2twin.store import ArtifactStore, open_store
from scan2twin.store.models import latest_model, list_models

CAPTURE_ID = "test-capture"
CONFIG = resolve_config("standard", {})


class World:
    """A store with a capture, a folder of stage modules, a work folder and the record of calls."""

    def __init__(self, root: Path, capture: Path) -> None:
        self.modules, self.workdir, self.calls_file = root / "modules", root / "work", root / "calls"
        for folder in (self.modules, self.workdir):
            folder.mkdir()
        self.calls_file.touch()
        self.store: ArtifactStore = open_store(str(root / "store"))
        import_capture(self.store, capture)

    def calls(self) -> list[str]:
        """Return the stages that were called since the last time, in order."""
        names = self.calls_file.read_text().split()
        self.calls_file.write_text("")
        return names

    def set_bodies(self, **bodies: str) -> None:
        write_modules(self.modules, bodies)
        for name in NAMES:
            sys.modules.pop(f"tiny_{name}", None)

    def run(self, config: PipelineConfig = CONFIG, **options: Any) -> list[StageRun]:
        return run_pipeline(self.store, CAPTURE_ID, config, LogProgress(), workdir=self.workdir, **options)

    def stage(self, name: str, config: PipelineConfig = CONFIG) -> StageRun:
        return run_stage(self.store, CAPTURE_ID, name, config, LogProgress(), workdir=self.workdir)

    def listed(self, area: str = "artifacts") -> list[str]:
        return [stored.key for stored in self.store.list_objects(area)]

    def folder(self, name: str, config: PipelineConfig = CONFIG) -> str:
        stage = stages.stage_named(name)
        known = fingerprints(find_capture(self.store, CAPTURE_ID), config)
        return output_folder(CAPTURE_ID, stage, known[name])

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.modules), "PYTHONDONTWRITEBYTECODE": "1", **more}

    def command(self) -> list[str]:
        return [sys.executable, tiny_pipeline.__file__, self.store.uri, CAPTURE_ID, str(self.workdir)]


@pytest.fixture
def world(tmp_path: Path, make_capture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path, make_capture())
    monkeypatch.setattr(stages, "STAGES", tiny_pipeline.STAGES)
    monkeypatch.syspath_prepend(str(world.modules))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # modules change within a second, which caches do not see
    monkeypatch.setenv(CALLS_VARIABLE, str(world.calls_file))
    world.set_bodies()
    return world


def test_every_stage_runs_once_in_order(world: World) -> None:
    started: list[str] = []
    ended: list[tuple[str, bool]] = []
    runs = world.run(
        on_stage_start=lambda stage: started.append(stage.name),
        on_stage_end=lambda stage, run: ended.append((stage.name, run.skipped)),
    )
    assert world.calls() == list(NAMES)
    assert started == [run.manifest.stage for run in runs] == list(NAMES)
    assert ended == [(name, False) for name in NAMES]
    assert [run.skipped for run in world.run()] == [True] * 4
    assert world.calls() == []
    assert list(world.workdir.iterdir()) == []


def test_a_stage_reads_its_inputs_and_all_earlier_manifests(world: World, tmp_path: Path) -> None:
    manifest = world.run()[2].manifest
    seen = json.loads(world.store.read_bytes(f"{world.folder('export')}/{manifest.attempt}/inputs.json"))
    assert seen["files"] == {"condition": ["inputs.json", "sub/first.txt"]}
    assert seen["manifests"] == {"validate": {"stage": "validate"}, "condition": {"stage": "condition"}}
    assert seen["config"] == CONFIG.export.model_dump(mode="json")
    seen = json.loads(
        world.store.read_bytes(f"{world.folder('validate')}/{world.stage('validate').manifest.attempt}/inputs.json")
    )
    assert {"capture.json", "frames.jsonl", "images/000000.jpg"} <= set(seen["files"]["capture"])


def test_a_manifest_tells_how_the_output_came_about(world: World) -> None:
    manifest = world.run()[1].manifest
    known = fingerprints(find_capture(world.store, CAPTURE_ID), CONFIG)
    assert manifest.fingerprint == known["condition"]
    assert manifest.inputs == {"capture": known["capture"], "validate": known["validate"]}
    assert manifest.config == CONFIG.condition.model_dump()
    assert (manifest.metrics, manifest.warnings) == ({"stage": "condition"}, ["condition warns"])
    assert [entry.name for entry in manifest.files] == ["inputs.json", "sub/first.txt"]
    assert manifest.code_version.startswith("0.")
    assert manifest.libraries["numpy"]
    assert manifest.started_at <= manifest.finished_at
    times = manifest.durations
    assert times.total_s == pytest.approx(times.download_s + times.run_s + times.upload_s)


def test_only_what_a_changed_option_reaches_runs_again(world: World) -> None:
    world.run()
    world.calls()
    other = resolve_config("standard", {"export": {"texture_size": 512}})
    assert [run.skipped for run in world.run(other)] == [True, True, False, False]
    assert world.calls() == ["export", "publish"]
    assert [run.skipped for run in world.run()] == [True] * 4


def test_a_changed_capture_runs_everything_again(world: World, make_capture: Callable[..., Path]) -> None:
    world.run()
    import_capture(world.store, make_capture("again", frames=9))
    assert [run.skipped for run in world.run()] == [False] * 4


def test_stages_run_one_at_a_time_without_being_told_anything(world: World) -> None:
    assert [world.stage(name).skipped for name in NAMES] == [False] * 4
    assert [world.stage(name).skipped for name in NAMES] == [True] * 4
    assert world.calls() == list(NAMES)


def test_a_stage_says_which_must_run_first(world: World) -> None:
    with pytest.raises(
        MissingArtifactError, match=r"stage publish: .*no committed output of stage export.* stage validate first"
    ):
        world.stage("publish")
    world.stage("validate")
    with pytest.raises(MissingArtifactError, match="the stage condition first"):
        world.stage("publish")
    with pytest.raises(InputError, match="choose one of validate, condition, export, publish"):
        world.stage("bake")
    with pytest.raises(MissingArtifactError, match="no capture 'other'"):
        run_stage(world.store, "other", "validate", CONFIG, LogProgress())
    assert world.calls() == ["validate"]


def test_outputs_that_are_no_longer_needed_may_be_deleted(world: World) -> None:
    world.stage("validate")
    world.stage("condition")
    world.store.delete(f"{world.folder('validate')}/manifest.json")
    assert not world.stage("export").skipped


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("raise MemoryError", ResourceError, r"stage export: memory ran out \(MemoryError\); choose a smaller preset"),
        ("class OutOfMemoryError(RuntimeError): pass\n    raise OutOfMemoryError('CUDA out of memory.\\nlong text')",
         ResourceError, r"memory ran out \(CUDA out of memory\.\)"),
        ("raise RuntimeError('DefaultCPUAllocator: can\\'t allocate memory')", ResourceError, "memory ran out"),
        ("import errno; raise OSError(errno.ENOSPC, 'No space left on device', 'x.png')", ResourceError,
         r"stage export: the disk is full .*x\.png.*; free some space"),
        ("from scan2twin.errors import CaptureError; raise CaptureError('a', 'b')", InputError, "a\nb"),
        ("raise ZeroDivisionError('boom')", ZeroDivisionError, "boom"),
        ("(outputs / 'b?d').write_text('x')", InputError, "unsafe key or file name .*b?d"),
    ],
)  # fmt: skip
def test_a_failure_leaves_nothing_half_done(world: World, body: str, error: type[Exception], message: str) -> None:
    world.set_bodies(export=body)
    with pytest.raises(error, match=message):
        world.run()
    assert not any("/export/" in key for key in world.listed())
    assert world.listed("models") == []
    assert list(world.workdir.iterdir()) == []
    world.set_bodies()
    assert [run.skipped for run in world.run()] == [True, True, False, False]


def test_a_real_torch_out_of_memory_is_recognised(world: World) -> None:
    world.set_bodies(validate="import torch; torch.empty(1 << 50)")
    with pytest.raises(ResourceError, match="memory ran out"):
        world.stage("validate")


def test_peak_memory_counts_children(world: World) -> None:
    hold = "b = bytearray(300_000_000); __import__('time').sleep(0.5)"
    world.set_bodies(validate=f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}], check=True)")
    world.run()
    small = world.stage("condition").manifest.peak_memory_mb
    assert world.stage("validate").manifest.peak_memory_mb > small + 290


def test_publishing_flips_the_pointer(world: World, tmp_path: Path) -> None:
    assert latest_model(world.store, CAPTURE_ID) is None
    with pytest.raises(MissingArtifactError, match="no model of capture 'test-capture' is published"):
        fetch_model(world.store, CAPTURE_ID, tmp_path / "out")
    first = world.run()[-1].manifest
    model = latest_model(world.store, CAPTURE_ID)
    assert model is not None
    assert (model.fingerprint, model.manifest) == (first.fingerprint, f"{world.folder('publish')}/manifest.json")
    other = resolve_config("standard", {"export": {"texture_size": 512}})
    second = world.run(other)[-1].manifest
    assert [m.fingerprint for m in list_models(world.store)] == [second.fingerprint] != [first.fingerprint]
    fetch_model(world.store, CAPTURE_ID, tmp_path / "first", first)
    fetched = json.loads((tmp_path / "first" / "inputs.json").read_text())
    assert fetched["fingerprints"]["export"] == world.stage("export").manifest.fingerprint != second.inputs["export"]
    # The first is still whole: asking for it again shows it again, without running anything.
    assert all(run.skipped for run in world.run())
    assert [m.fingerprint for m in list_models(world.store)] == [first.fingerprint]


def test_a_run_that_was_cut_before_the_pointer_flipped_is_completed(world: World) -> None:
    world.run()
    world.store.delete(f"models/{CAPTURE_ID}/latest.json")
    assert all(run.skipped for run in world.run())
    assert latest_model(world.store, CAPTURE_ID) is not None


def test_fetching_replaces_the_model_and_leaves_other_files(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    (out / "sub" / "first.txt").write_text("old")
    world.run()
    manifest = fetch_model(world.store, CAPTURE_ID, out)
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == [
        "inputs.json", "notes.txt", "sub/first.txt",
    ]  # fmt: skip
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "sub" / "first.txt").read_text() == "publish of export"
    # A damaged model replaces nothing.
    world.store.put_bytes(f"{world.folder('publish')}/{manifest.attempt}/inputs.json", b"damaged")
    (out / "sub" / "first.txt").write_text("good")
    with pytest.raises(IntegrityError, match=r"inputs\.json is damaged"):
        fetch_model(world.store, CAPTURE_ID, out)
    assert (out / "sub" / "first.txt").read_text() == "good"
    assert sorted(p.name for p in out.iterdir()) == ["inputs.json", "notes.txt", "sub"]


def test_a_damaged_input_is_never_used(world: World) -> None:
    manifest = world.stage("validate").manifest
    world.store.put_bytes(f"{world.folder('validate')}/{manifest.attempt}/inputs.json", b"{}")
    with pytest.raises(IntegrityError, match=r"delete .*manifest\.json to have the stage validate run again"):
        world.stage("condition")
    world.store.delete(f"{world.folder('validate')}/manifest.json")
    assert [run.skipped for run in world.run()] == [False] * 4


def test_log_records_know_what_they_are_about(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "scan2twin")
    caplog.handler.addFilter(ContextFilter())
    world.run()
    assert {(r.capture, r.stage, r.run) for r in caplog.records} == {(CAPTURE_ID, name, "-") for name in NAMES}


def test_a_finished_capture_needs_neither_stages_nor_heavy_libraries(world: World) -> None:
    world.run()
    result = subprocess.run(world.command(), env=world.environment(), capture_output=True, text=True, check=True)
    assert f"skipped {list(NAMES)}" in result.stdout
    assert "imported []" in result.stdout


def test_two_runs_at_once_end_with_one_output(world: World) -> None:
    world.set_bodies(**dict.fromkeys(NAMES, "import time; time.sleep(0.3)"))
    runs = [subprocess.Popen(world.command(), env=world.environment(), stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [run.wait(60) for run in runs] == [0, 0]
    for name in NAMES:
        manifest = world.stage(name).manifest
        parts = {
            stored.key[len(world.folder(name)) :].split("/")[1]
            for stored in world.store.list_objects(world.folder(name))
        }
        assert parts == {"manifest.json", manifest.attempt}
    assert all(run.skipped for run in world.run())


@pytest.mark.parametrize(
    ("stage", "how"),
    [*((name, signal.SIGKILL) for name in NAMES), ("condition", signal.SIGTERM), ("export", signal.SIGINT)],
)
def test_a_run_stopped_in_any_stage_goes_on_from_there(world: World, stage: str, how: signal.Signals) -> None:
    with subprocess.Popen(
        world.command(), env=world.environment(**{HOLD_VARIABLE: stage}), stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stdout.readline() == "holding\n"
        run.send_signal(how)
    before = NAMES[: NAMES.index(stage)]
    assert run.returncode == {signal.SIGTERM: 143, signal.SIGINT: -signal.SIGINT, signal.SIGKILL: -signal.SIGKILL}[how]
    assert world.calls() == [*before, stage]
    assert latest_model(world.store, CAPTURE_ID) is None
    if how is not signal.SIGKILL:
        assert list(world.workdir.iterdir()) == []
        assert not list(world.store.list_objects(world.folder(stage)))
    assert [run.manifest.stage for run in world.run() if run.skipped] == list(before)
    assert world.calls() == list(NAMES[len(before) :])
    assert latest_model(world.store, CAPTURE_ID) is not None


def test_sigterm_cleans_up_after_a_library_took_the_signal_for_itself(world: World) -> None:
    module = world.modules / "tiny_condition.py"
    module.write_text("import pycolmap\n" + module.read_text())  # its glog installs a handler that only prints and dies
    with subprocess.Popen(
        world.command(), env=world.environment(**{HOLD_VARIABLE: "export"}), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        assert run.stdout.readline() == "holding\n"
        run.send_signal(signal.SIGTERM)
        _, errors = run.communicate()
    assert run.returncode == 143
    assert "stack trace" not in errors
    assert list(world.workdir.iterdir()) == []


def test_a_commit_whose_answer_is_lost_keeps_its_files(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    put_bytes = world.store.put_bytes

    def answer_lost(key: str, data: bytes, *, if_absent: bool = False) -> bool:
        put_bytes(key, data, if_absent=if_absent)
        raise StoreError("no answer")

    monkeypatch.setattr(world.store, "put_bytes", answer_lost)
    with pytest.raises(StoreError, match="no answer"):
        world.stage("validate")
    monkeypatch.undo()
    monkeypatch.setattr(stages, "STAGES", tiny_pipeline.STAGES)
    monkeypatch.syspath_prepend(str(world.modules))
    monkeypatch.setenv(CALLS_VARIABLE, str(world.calls_file))
    assert world.stage("validate").skipped
    assert not world.stage("condition").skipped

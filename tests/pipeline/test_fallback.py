"""Memory runs out in a stage: the next smaller preset, once, if allowed, and everybody is told."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_pipeline
from tiny_pipeline import CALLS_VARIABLE, NAMES, write_modules

from scan2twin import stages
from scan2twin.config import Preset, resolve_config
from scan2twin.errors import ResourceError
from scan2twin.fallback import next_smaller, ran_out_of_memory
from scan2twin.memory import out_of_memory_kills
from scan2twin.progress import LogProgress
from scan2twin.runner import (
    StageRun,
    find_capture,
    fingerprints,
    import_capture,
    output_folder,
    run_pipeline,
    run_stage,
)
from scan2twin.store.directory import DirectoryStore

CAPTURE_ID = "test-capture"
STANDARD, DRAFT = resolve_config("standard", {}), resolve_config("draft", {})
FALLBACK = next_smaller("standard", {})
# The export stage takes too much memory with the standard preset's textures.
TOO_LARGE = f"if config.texture_size > {DRAFT.export.texture_size}: raise MemoryError"


class Small:
    """A store and a machine with little memory."""

    def __init__(self, root: Path, capture: Path) -> None:
        self.modules, self.calls_file = root / "modules", root / "calls"
        self.modules.mkdir()
        self.calls_file.touch()
        self.store = DirectoryStore(root / "store")
        import_capture(self.store, capture)
        self.memory_is_short(TOO_LARGE)

    def memory_is_short(self, body: str) -> None:
        write_modules(self.modules, {"export": body})
        sys.modules.pop("tiny_export", None)

    def run(self, allowed: bool = True) -> list[StageRun]:
        return run_pipeline(
            self.store, CAPTURE_ID, STANDARD, LogProgress(), fallback=FALLBACK if allowed else None
        )  # fmt: skip

    def folder(self, name: str) -> str:
        known = fingerprints(find_capture(self.store, CAPTURE_ID), STANDARD)
        return output_folder(CAPTURE_ID, stages.stage_named(name), known[name])

    def calls(self) -> list[str]:
        names = self.calls_file.read_text().split()
        self.calls_file.write_text("")
        return names


@pytest.fixture
def small(tmp_path: Path, make_capture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.setattr(stages, "STAGES", tiny_pipeline.STAGES)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv(CALLS_VARIABLE, str(tmp_path / "calls"))
    for name in NAMES:
        sys.modules.pop(f"tiny_{name}", None)
    return Small(tmp_path, make_capture())


def test_without_memory_the_next_smaller_preset_is_used_and_the_manifest_says_so(
    small: Small, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "scan2twin")
    runs = small.run()
    assert small.calls() == ["validate", "condition", "export", "export", "publish"]
    assert "going on with preset draft instead of standard" in caplog.text
    warnings = {run.manifest.stage: run.manifest.warnings for run in runs}
    assert "made with preset draft because memory ran out with standard" in warnings["export"][0]
    assert warnings["publish"] == [warnings["export"][0], "publish warns"]
    assert warnings["condition"] == ["condition warns"]
    assert runs[2].manifest.config == DRAFT.export.model_dump(mode="json")
    # Nothing is tried again, neither by a run nor by a task that is run alone.
    assert all(run.skipped for run in small.run())
    alone = run_stage(small.store, CAPTURE_ID, "publish", STANDARD, LogProgress(), fallback=FALLBACK)
    assert alone.skipped
    assert small.calls() == []


def test_without_permission_memory_that_runs_out_is_an_error(small: Small) -> None:
    with pytest.raises(ResourceError, match="choose a smaller preset"):
        small.run(allowed=False)
    assert not ran_out_of_memory(small.store, small.folder("export"))
    assert next_smaller("draft", {}) is None


def test_the_preset_gets_smaller_once(small: Small) -> None:
    small.memory_is_short("raise MemoryError")
    with pytest.raises(ResourceError):
        small.run()
    assert small.calls() == ["validate", "condition", "export", "export"]


def test_success_on_a_larger_machine_makes_it_forgotten(small: Small) -> None:
    small.run()
    small.memory_is_short("pass")
    assert small.run(allowed=False)[-1].manifest.warnings == ["publish warns"]
    assert not ran_out_of_memory(small.store, small.folder("export"))
    assert small.run()[2].manifest.config == STANDARD.export.model_dump(mode="json")


def test_every_preset_but_the_smallest_has_a_smaller_one_that_keeps_the_overrides() -> None:
    overrides = {"reconstruct": {"seed": 7}}
    for larger, smaller in zip(list(Preset)[1:], list(Preset), strict=False):
        fallback = next_smaller(larger, overrides)
        assert fallback is not None
        assert fallback.config == resolve_config(smaller, overrides)


def test_the_kernel_says_how_many_processes_it_killed(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("pgfault 12\noom_kill 3\noom_kill_x 9\n")
    assert out_of_memory_kills(vmstat) == 3
    assert out_of_memory_kills(tmp_path / "none") == 0

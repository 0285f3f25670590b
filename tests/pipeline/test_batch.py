"""Which captures of a night are selected."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
import tiny_pipeline
from tiny_pipeline import CALLS_VARIABLE, write_modules

from scan2twin import batch, stages
from scan2twin.batch import CHUNK, chunks, select_captures
from scan2twin.config import resolve_config
from scan2twin.progress import LogProgress
from scan2twin.runner import import_capture, run_pipeline
from scan2twin.store import ArtifactStore
from scan2twin.store.directory import DirectoryStore

STANDARD, OTHER = resolve_config("standard", {}), resolve_config("standard", {"export": {"texture_size": 512}})
DAY = date(2026, 11, 20)


@pytest.fixture
def store(tmp_path: Path, make_capture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """A store with captures of three days, of which the second has two."""
    monkeypatch.setattr(stages, "STAGES", tiny_pipeline.STAGES)
    monkeypatch.setattr(batch, "STAGES", tiny_pipeline.STAGES)
    modules = tmp_path / "modules"
    modules.mkdir()
    write_modules(modules)
    monkeypatch.syspath_prepend(str(modules))
    monkeypatch.setenv(CALLS_VARIABLE, str(tmp_path / "calls"))
    store = DirectoryStore(tmp_path / "store")
    for capture_id, day in (("early", 19), ("first", 20), ("second", 20), ("late", 21)):
        put(store, make_capture(capture_id), capture_id, day)
    return store


def put(store: ArtifactStore, folder: Path, capture_id: str, day: int, name: str = "Test") -> None:
    path = folder / "capture.json"
    changes = {"capture_id": capture_id, "recorded_at": f"2026-11-{day}T23:59:00+00:00", "name": name}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    import_capture(store, folder)


def test_the_captures_of_the_days_are_selected(store: ArtifactStore) -> None:
    assert select_captures(store, DAY, DAY, STANDARD) == ["first", "second"]
    assert select_captures(store, date(2026, 11, 19), DAY, STANDARD) == ["early", "first", "second"]
    assert select_captures(store, date(2026, 12, 1), date(2026, 12, 31), STANDARD) == []


def test_an_upload_that_is_not_complete_is_left_out(store: ArtifactStore) -> None:
    store.put_bytes("captures/2026/11/20/coming/images/000000.jpg", b"half")
    assert select_captures(store, DAY, DAY, STANDARD) == ["first", "second"]


def test_what_is_published_with_the_same_content_and_configuration_is_skipped(
    store: ArtifactStore, tmp_path: Path
) -> None:
    run_pipeline(store, "first", STANDARD, LogProgress())
    assert select_captures(store, DAY, DAY, STANDARD) == ["second"]
    assert select_captures(store, DAY, DAY, OTHER) == ["first", "second"]
    put(store, tmp_path / "first", "first", 20, name="Recorded again")
    assert select_captures(store, DAY, DAY, STANDARD) == ["first", "second"]


def test_any_number_of_captures_is_split_into_less_than_airflow_maps() -> None:
    names = [f"c{number}" for number in range(5_000)]
    parts = list(chunks(names))
    assert [name for part in parts for name in part] == names
    assert max(map(len, parts)) <= CHUNK
    assert CHUNK * 1024 >= 500_000  # captures a night, with Airflow's default of core.max_map_length
    assert list(chunks([])) == []


def test_a_night_of_five_thousand_is_chosen_from_in_little_memory() -> None:
    """In a process of its own, as Airflow's task is; the time is only printed."""
    command = [sys.executable, "-m", "scan2twin", "benchmark", "night", "--captures", "5000", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout[done.stdout.index("{") :])
    print(figures)
    assert (figures["captures"], figures["left"]) == (5000, 0)
    assert figures["memory_mb"] < 300

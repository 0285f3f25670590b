"""The keeper of checkpoints against every kind of store."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scan2twin.errors import StoreError
from scan2twin.store import ArtifactStore
from scan2twin.store import checkpoints as module
from scan2twin.store.checkpoints import CheckpointKeeper, discard_checkpoints
from scan2twin.store.directory import DirectoryStore

OUTPUT = "artifacts/mug/reconstruct/" + 64 * "0"
LIMIT_S = 20.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.02)
    monkeypatch.setattr(module, "LAST_UPLOAD_S", LIMIT_S)


def keys(store: ArtifactStore) -> list[str]:
    return [stored.key for stored in store.list_objects(OUTPUT)]


def replace(folder: Path, content: bytes, name: str = "optimiser.pt") -> None:
    """Replace a checkpoint as a stage does."""
    partial = folder / f"{name}.partial"
    partial.write_bytes(content)
    partial.replace(folder / name)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def restored(store: ArtifactStore, folder: Path) -> dict[str, bytes]:
    with CheckpointKeeper(store, OUTPUT, folder):
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_replaced_last_is_found_again(store: ArtifactStore, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with CheckpointKeeper(store, OUTPUT, folder):
        replace(folder, b"first")
        wait_until(lambda: bool(keys(store)))
        replace(folder, b"second")
        replace(folder, b"other", "views.pt")
        (folder / "torn.partial").write_bytes(b"torn")
    assert restored(store, tmp_path / "again") == {"optimiser.pt": b"second", "views.pt": b"other"}
    assert len(keys(store)) == 2  # older ones are gone, and restoring uploads nothing
    discard_checkpoints(store, OUTPUT)
    assert keys(store) == []
    assert restored(store, tmp_path / "third") == {}


def test_a_damaged_checkpoint_gives_way_to_the_one_before(store: ArtifactStore, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with CheckpointKeeper(store, OUTPUT, folder):
        replace(folder, b"whole")
    (key,) = keys(store)
    store.put_bytes(key.replace("/0", "/1"), b"cut")  # a later time, another content
    assert restored(store, tmp_path / "again") == {"optimiser.pt": b"whole"}
    store.delete(key)
    assert restored(store, tmp_path / "nothing") == {}


def test_a_store_that_fails_costs_the_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, folder = DirectoryStore(tmp_path / "store"), tmp_path / "checkpoints"

    def refuse(*_: object) -> None:
        raise StoreError("no answer")

    with monkeypatch.context() as failing:
        failing.setattr(store, "list_objects", refuse)
        failing.setattr(store, "put_file", refuse)
        keeper = CheckpointKeeper(store, OUTPUT, folder)
        with keeper:
            replace(folder, b"first")
            wait_until(lambda: "could not be kept" in caplog.text)
            failing.undo()  # it answers again, and the same file is tried again
            wait_until(lambda: bool(keys(store)))
    assert "starting anew" in caplog.text
    assert restored(store, tmp_path / "again") == {"optimiser.pt": b"first"}

"""What housekeeping finds and what it leaves alone."""

import time
from pathlib import Path

import pytest
from test_artifacts import make_manifest, write_output

from scan2twin.fallback import NOTE
from scan2twin.retention import DAY_S, LEFTOVER_DAYS, find_removals, remove
from scan2twin.store import ArtifactStore
from scan2twin.store.artifacts import commit, upload

OUTPUT = "artifacts/mug/mask/" + 64 * "0"
OPEN = "artifacts/mug/reconstruct/" + 64 * "1"  # no manifest: killed, or still running
MODEL = "models/mug/" + 64 * "2"
CAPTURE, UPLOAD = "captures/2026/11/20/mug", "captures/2026/11/21/cup"
SOON, LATER = (LEFTOVER_DAYS - 1) * DAY_S, (LEFTOVER_DAYS + 1) * DAY_S


@pytest.fixture
def filled(store: ArtifactStore, tmp_path: Path) -> ArtifactStore:
    """A store with whole things and leftovers of every kind."""
    source = write_output(tmp_path / "source", "a")
    for folder, attempts in ((OUTPUT, ("won", "lost")), (OPEN, ("cut",)), (MODEL, ("won", "lost"))):
        for attempt in attempts:
            files = upload(store, folder, attempt, source)
        if "won" in attempts:
            commit(store, folder, make_manifest("won", files))
    store.put_bytes(f"{OPEN}/checkpoint/optimiser.pt/1-x", b"state")
    store.put_bytes(f"{OPEN}/{NOTE}", b"{}")
    store.put_bytes("models/mug/latest.json", b"{}")
    for folder in (CAPTURE, UPLOAD):
        store.put_bytes(f"{folder}/images/000000.jpg", b"jpg")
    store.put_bytes(f"{CAPTURE}/capture.json", b"{}")
    return store


def keys(store: ArtifactStore) -> set[str]:
    return {found.key for area in ("artifacts", "captures", "models") for found in store.list_objects(area)}


def folders(store: ArtifactStore, after_s: float, keep_days: float | None = None) -> set[str]:
    return {removal.folder for removal in find_removals(store, time.time() + after_s, keep_days)}


def test_leftovers_go_when_nobody_can_be_using_them(filled: ArtifactStore) -> None:
    assert folders(filled, SOON) == set()
    leftovers = {f"{OUTPUT}/lost", f"{MODEL}/lost", f"{OPEN}/cut", f"{OPEN}/checkpoint", f"{OPEN}/{NOTE}", UPLOAD}
    assert folders(filled, LATER) == leftovers
    before = keys(filled)
    for removal in list(find_removals(filled, time.time() + LATER, None)):
        remove(filled, removal)
    gone = before - keys(filled)
    assert gone == {key for key in before if any(key == folder or key.startswith(f"{folder}/") for folder in leftovers)}
    assert folders(filled, LATER) == set()


def test_intermediate_outputs_go_when_they_are_old_and_models_stay(filled: ArtifactStore) -> None:
    (old,) = (r for r in find_removals(filled, time.time() + SOON, 0.5) if r.folder == OUTPUT)
    assert old.keys[0] == f"{OUTPUT}/manifest.json"  # goes first, so that nobody finds half an output
    assert old.size == sum(found.size for found in filled.list_objects(OUTPUT))
    remove(filled, old)
    assert not list(filled.list_objects(OUTPUT))
    left = folders(filled, 1000 * DAY_S, 1)
    assert MODEL not in left
    assert CAPTURE not in left
    assert folders(filled, SOON, 30) == set()

"""What in the store may go: leftovers of killed work at any time, intermediate outputs when they are old.

Captures and published models are never touched. Nothing is deleted while it is found: `find_removals` makes a list that
can be shown first.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from scan2twin.fallback import NOTE
from scan2twin.store import ArtifactStore, StoredObject
from scan2twin.store.artifacts import ARTIFACTS, MANIFEST, read_manifest
from scan2twin.store.captures import CAPTURES
from scan2twin.store.checkpoints import CHECKPOINT
from scan2twin.store.models import MODELS
from scan2twin.store.sources import SOURCE_FILE, SOURCES
from scan2twin.store.transfer import parallel

CAPTURE_FILE = "capture.json"
DAY_S = 86_400.0
LEFTOVER_DAYS = 2.0  # longer than any stage may run, with its retries


@dataclass(frozen=True)
class Removal:
    """Objects that may go together, in the order in which they have to."""

    folder: str
    reason: str
    keys: tuple[str, ...]
    size: int  # bytes


def find_removals(store: ArtifactStore, now: float, keep_days: float | None) -> Iterator[Removal]:
    """Yield what may go at time `now` (seconds since the epoch, by the store's clock).

    Leftovers go after `LEFTOVER_DAYS`: attempts that no manifest names, checkpoints and notes of work that nobody took
    up again, uploads of captures without a capture.json. After `keep_days` (None keeps them) go scans that no run
    imported, and committed outputs below `artifacts/`; what is needed again is then made again.
    """
    for area in (ARTIFACTS, MODELS):
        for folder, objects in _outputs(store, area):
            yield from _of_output(store, folder, objects, now, keep_days if area == ARTIFACTS else None)
    for folder, objects in _folders(store.list_objects(CAPTURES), depth=5):
        committed = any(stored.key == f"{folder}/{CAPTURE_FILE}" for stored in objects)
        if not committed and _age_days(objects, now) > LEFTOVER_DAYS:
            yield _removal(folder, "an upload that was abandoned", objects)
    for folder, objects in _folders(store.list_objects(SOURCES), depth=3):
        whole = any(stored.key == f"{folder}/{SOURCE_FILE}" for stored in objects)
        limit = keep_days if whole else LEFTOVER_DAYS
        if limit is not None and _age_days(objects, now) > limit:
            yield _removal(folder, "a scan that no run could import" if whole else "an abandoned upload", objects)


def remove(store: ArtifactStore, removal: Removal) -> None:
    """Delete the objects of `removal`, the manifest first, so that nobody finds half an output."""
    first, *others = removal.keys
    store.delete(first)
    parallel(store.delete, others)


def _of_output(
    store: ArtifactStore, folder: str, objects: list[StoredObject], now: float, keep_days: float | None
) -> Iterator[Removal]:
    """Yield what may go of one output: its folder holds attempts, checkpoints, perhaps a note and a manifest."""
    manifest = next((stored for stored in objects if stored.key == f"{folder}/{MANIFEST}"), None)
    if manifest and keep_days is not None and _age_days([manifest], now) > keep_days:
        yield _removal(folder, f"an output older than {keep_days:g} days", sorted(objects, key=lambda o: o != manifest))
        return
    committed = read_manifest(store, folder) if manifest else None
    others = [stored for stored in objects if stored is not manifest]
    for part, found in groupby(others, key=lambda stored: stored.key[len(folder) + 1 :].split("/")[0]):
        of_part = list(found)
        if (committed and part == committed.attempt) or _age_days(of_part, now) <= LEFTOVER_DAYS:
            continue
        reason = {CHECKPOINT: "a checkpoint", NOTE: "a note"}.get(part, "an attempt")
        yield _removal(f"{folder}/{part}", f"{reason} that nobody took up again", of_part)


def _outputs(store: ArtifactStore, area: str) -> Iterator[tuple[str, list[StoredObject]]]:
    """Yield the folder of every output and what is in it; one capture at a time, so that memory stays small."""
    depth = 4 if area == ARTIFACTS else 3
    for capture_id in store.list_folders(area):
        yield from _folders(store.list_objects(f"{area}/{capture_id}"), depth)


def _folders(objects: Iterable[StoredObject], depth: int) -> Iterator[tuple[str, list[StoredObject]]]:
    """Group a sorted listing by the first `depth` parts of its keys; objects that lie above are left out."""
    deep = (stored for stored in objects if stored.key.count("/") >= depth)
    for folder, found in groupby(deep, key=lambda stored: "/".join(stored.key.split("/")[:depth])):
        yield folder, list(found)


def _age_days(objects: list[StoredObject], now: float) -> float:
    """Return the age of the newest of `objects`."""
    return (now - max(stored.modified for stored in objects)) / DAY_S


def _removal(folder: str, reason: str, objects: Iterable[StoredObject]) -> Removal:
    objects = list(objects)
    return Removal(folder, reason, tuple(stored.key for stored in objects), sum(stored.size for stored in objects))

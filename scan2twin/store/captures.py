"""Captures in the store: `captures/YYYY/MM/DD/<capture_id>/…` by the UTC day of recording.

`capture.json` is written last and deleted first, so a capture is there exactly when that object is.
"""

import hashlib
import logging
import re
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ValidationError

from scan2twin.capture.models import MAX_UNPACKED_BYTES
from scan2twin.capture.names import list_faults
from scan2twin.capture.reader import CAPTURE_FILE, check_bundle, is_bundle, unpack
from scan2twin.errors import CaptureError, InputError, IntegrityError, MissingArtifactError, NotFoundError
from scan2twin.progress import Progress
from scan2twin.store.artifacts import download_files
from scan2twin.store.base import ArtifactStore, disk_errors
from scan2twin.store.manifest import FileEntry
from scan2twin.store.transfer import parallel

log = logging.getLogger("scan2twin")

CAPTURES = "captures"
CORRECTIONS = "corrections/masks.json"  # below a capture's folder; see `store.corrections`
_CAPTURE_ID = re.compile(r"[a-z0-9-]{3,64}")


class CaptureIndex(BaseModel):
    """What the store needs of capture.json; the capture reader checks the rest."""

    capture_id: str
    recorded_at: AwareDatetime
    files: list[FileEntry]


@dataclass(frozen=True)
class CaptureLocation:
    """Where a committed capture is."""

    capture_id: str
    recorded_on: date  # UTC

    @property
    def folder(self) -> str:
        """The capture's key prefix."""
        return f"{CAPTURES}/{self.recorded_on:%Y/%m/%d}/{self.capture_id}"


@dataclass(frozen=True)
class StoredCapture:
    """A committed capture and its capture.json as stored."""

    location: CaptureLocation
    document: bytes
    corrections: bytes = b""  # masks.json of `store.corrections`; empty if no mask was corrected

    @property
    def fingerprint(self) -> str:
        """SHA-256 of capture.json, which lists the hash of every other file."""
        return hashlib.sha256(self.document).hexdigest()

    @property
    def corrections_fingerprint(self) -> str:
        """SHA-256 of the list of corrected masks, which has the hash of each."""
        return hashlib.sha256(self.corrections).hexdigest()


def check_capture_id(capture_id: str) -> str:
    """Return `capture_id` if it keeps the format's rule; else raise InputError."""
    if not _CAPTURE_ID.fullmatch(capture_id):
        raise InputError(f"capture_id {capture_id[:80]!r}: use 3 to 64 characters of a-z, 0-9 and -")
    return capture_id


def import_capture(store: ArtifactStore, path: Path, progress: Progress | None = None) -> str:
    """Put a capture (a folder or a .zip of it, or a scan of another tool) into the store and return its id.

    The same content already there is left alone; other content under the same id is replaced. Raises CaptureError
    if the bundle breaks the capture format; then nothing is stored.
    """
    if not path.exists():
        raise CaptureError(f"{path}: there is no such folder or file; give a capture's folder or its .zip")
    if not is_bundle(path):
        from scan2twin.importers import as_bundle  # pulls in image libraries

        with as_bundle(path, progress) as (bundle, imported):
            for warning in imported.warnings if imported else ():
                log.warning("import: %s", warning)
            return import_capture(store, bundle)
    with tempfile.TemporaryDirectory(prefix="scan2twin-import-") as temporary:
        folder = path
        if not path.is_dir():
            folder = Path(temporary) / "capture"
            with disk_errors(f"unpacking {path}"):
                unpack(path, folder)
        if faults := check_bundle(folder):
            raise CaptureError(*faults)
        document = (folder / CAPTURE_FILE).read_bytes()
        index = CaptureIndex.model_validate_json(document)
        location = CaptureLocation(index.capture_id, index.recorded_at.astimezone(UTC).date())
        present = _locate(store, index.capture_id)
        if present == [location] and store.read_bytes(f"{location.folder}/{CAPTURE_FILE}") == document:
            log.info("capture %s is already in the store, unchanged", index.capture_id)
            return index.capture_id
        for old in present:
            store.delete(f"{old.folder}/{CAPTURE_FILE}")
        parallel(lambda entry: store.put_file(f"{location.folder}/{entry.name}", folder / entry.name), index.files)
        store.put_bytes(f"{location.folder}/{CAPTURE_FILE}", document)
        kept = {f"{location.folder}/{name}" for name in [CAPTURE_FILE, *(entry.name for entry in index.files)]}
        for old in present:
            parallel(store.delete, [o.key for o in store.list_objects(old.folder) if o.key not in kept])
    return index.capture_id


def find_capture(store: ArtifactStore, capture_id: str) -> StoredCapture:
    """Find a committed capture by its id alone. Raises MissingArtifactError if there is none."""
    check_capture_id(capture_id)
    for location in _locate(store, capture_id):
        try:
            return read_capture_at(store, location)
        except NotFoundError:  # replaced this moment; another day may have it
            continue
    raise MissingArtifactError(
        f"store {store.uri}: there is no capture {capture_id!r}; `scan2twin captures` lists those there are"
    )


def read_capture_at(store: ArtifactStore, location: CaptureLocation) -> StoredCapture:
    """Read a committed capture's description. Raises NotFoundError."""
    document = store.read_bytes(f"{location.folder}/{CAPTURE_FILE}")
    corrections = b""
    with suppress(NotFoundError):
        corrections = store.read_bytes(f"{location.folder}/{CORRECTIONS}")
    return StoredCapture(location, document, corrections)


def list_captures(store: ArtifactStore, first: date = date.min, last: date = date.max) -> list[CaptureLocation]:
    """List the committed captures recorded from day `first` to day `last` (UTC, both included), oldest first."""
    return _committed(
        store,
        (
            CaptureLocation(name, day)
            for day in _days(store)
            if first <= day <= last
            for name in store.list_folders(f"{CAPTURES}/{day:%Y/%m/%d}")
            if _CAPTURE_ID.fullmatch(name)
        ),
    )


def download_capture(store: ArtifactStore, capture: StoredCapture, target: Path) -> None:
    """Write the capture's files below `target`, each with the size and SHA-256 that capture.json states.

    Raises CaptureError, with every reason, if capture.json or an object is missing, damaged, oversized or of
    another size: then the capture has to be uploaded again.
    """
    folder = capture.location.folder
    try:
        index = CaptureIndex.model_validate_json(capture.document)
    except ValidationError as error:
        raise CaptureError(
            *(f"{folder}/{CAPTURE_FILE}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        ) from None
    reasons = [f"{folder}/{CAPTURE_FILE}: files: {fault}" for fault in list_faults(file.name for file in index.files)]
    if index.capture_id != capture.location.capture_id:
        reasons.append(f"{folder}/{CAPTURE_FILE}: capture_id is {index.capture_id!r}; upload it under its own id")
    if (total := sum(entry.size for entry in index.files)) > MAX_UNPACKED_BYTES:
        reasons.append(f"{folder}: {total} bytes in all, the limit is {MAX_UNPACKED_BYTES}; record fewer frames")
    sizes = {stored.key: stored.size for stored in store.list_objects(folder)}
    for entry in index.files:
        size = sizes.get(f"{folder}/{entry.name}")
        if size != entry.size:
            found = "is missing" if size is None else f"has {size} bytes"
            reasons.append(f"{folder}/{entry.name}: {found}, {CAPTURE_FILE} says {entry.size}; upload it again")
    if reasons:
        raise CaptureError(*reasons)
    target.mkdir(parents=True, exist_ok=True)
    (target / CAPTURE_FILE).write_bytes(capture.document)
    try:
        download_files(store, folder, index.files, target)
    except (NotFoundError, IntegrityError) as error:
        raise CaptureError(f"{error}; upload the capture again") from error


def _locate(store: ArtifactStore, capture_id: str) -> list[CaptureLocation]:
    """Find the days under which a capture of this id is committed, newest first: one unless an import was cut."""
    return _committed(store, (CaptureLocation(capture_id, day) for day in reversed(_days(store))))


def _committed(store: ArtifactStore, candidates: Iterable[CaptureLocation]) -> list[CaptureLocation]:
    candidates = list(candidates)
    there = parallel(lambda location: store.exists(f"{location.folder}/{CAPTURE_FILE}"), candidates)
    return [location for location, exists in zip(candidates, there, strict=True) if exists]


def _days(store: ArtifactStore) -> Sequence[date]:
    """List the days that have a folder, oldest first."""
    days = []
    for year in store.list_folders(CAPTURES):
        for month in store.list_folders(f"{CAPTURES}/{year}"):
            for day in store.list_folders(f"{CAPTURES}/{year}/{month}"):
                with suppress(ValueError):  # a stray folder
                    days.append(datetime.strptime(f"{year}/{month}/{day}", "%Y/%m/%d").date())
    return days

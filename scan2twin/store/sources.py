"""Scans of other tools that were sent as one file and wait in the store to become captures.

    uploads/sources/<capture_id>/scan<suffix>   the file as it was sent: a zip, .r3d or video
    uploads/sources/<capture_id>/source.json    written last: the file is whole

The first stage that is asked for such a capture imports it; then both go.
"""

import logging
import os
import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, Field

from scan2twin.capture.models import CAPTURE_ID_PATTERN
from scan2twin.errors import CaptureError, MissingArtifactError, NotFoundError
from scan2twin.progress import Progress
from scan2twin.store.base import ArtifactStore, disk_errors
from scan2twin.store.captures import StoredCapture, check_capture_id, find_capture, import_capture

log = logging.getLogger("scan2twin")

SOURCES = "uploads/sources"
SOURCE_FILE = "source.json"
SOURCE_SUFFIXES = (".zip", ".r3d", ".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
MAX_SOURCE_BYTES = 2 << 30  # file, its content and the bundle lie beside each other on the disk of the first stage


class Source(BaseModel):
    """`source.json`: a scan that was sent, and what its sender says of it."""

    capture_id: Annotated[str, Field(pattern=CAPTURE_ID_PATTERN)]
    suffix: str
    size: int  # bytes
    recorded_at: AwareDatetime
    metres_per_unit: float | None = None  # true length of the scan's unit, where the scan has none

    @property
    def key(self) -> str:
        """Where the file lies."""
        return file_key(self.capture_id, self.suffix)


def file_key(capture_id: str, suffix: str) -> str:
    """Return where the file of a scan with this suffix lies."""
    return f"{SOURCES}/{capture_id}/scan{suffix}"


def source_key(capture_id: str) -> str:
    """Return where `source.json` lies."""
    return f"{SOURCES}/{capture_id}/{SOURCE_FILE}"


def capture_or_import(store: ArtifactStore, capture_id: str, progress: Progress) -> StoredCapture:
    """Find a committed capture, or make it of a scan that waits under this id.

    Raises:
        MissingArtifactError: there is neither.
        CaptureError: the scan is none that is known, or breaks its own conventions; it keeps waiting.

    """
    try:
        return find_capture(store, capture_id)
    except MissingArtifactError:
        try:
            raw = store.read_bytes(source_key(check_capture_id(capture_id)))
        except NotFoundError:
            raise MissingArtifactError(
                f"store {store.uri}: there is no capture {capture_id!r}; `scan2twin captures` lists those there are"
            ) from None
    source = Source.model_validate_json(raw)
    log.info("importing the scan that was sent as %s, %d bytes", source.key, source.size)
    _import(store, source, progress)
    store.delete(source_key(capture_id))
    store.delete(source.key)
    return find_capture(store, capture_id)


def _import(store: ArtifactStore, source: Source, progress: Progress) -> None:
    from scan2twin.importers import import_scan  # pulls in image libraries

    with tempfile.TemporaryDirectory(prefix="scan2twin-source-") as temporary:
        scan, bundle = Path(temporary) / f"{source.capture_id}{source.suffix}", Path(temporary) / "bundle"
        with disk_errors(f"fetching {source.key}"):
            try:
                store.get_file(source.key, scan)
            except NotFoundError:
                raise CaptureError(f"{source.key}: is gone; send the scan again") from None
        if scan.stat().st_size != source.size:
            raise CaptureError(f"{source.key}: {scan.stat().st_size} bytes of {source.size}; send the scan again")
        day = source.recorded_at.timestamp()
        os.utime(scan, (day, day))  # the capture's day of recording
        imported = import_scan(scan, bundle, source.capture_id, source.metres_per_unit, progress=progress)
        for warning in imported.warnings:
            log.warning("import: %s", warning)
        import_capture(store, bundle)

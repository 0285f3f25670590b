"""Write a capture bundle whose images are already in their folder."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from scan2twin.capture.models import CONVENTIONS, BundleFile, CaptureDocument, CaptureHeader, FrameRecord
from scan2twin.capture.reader import CAPTURE_FILE, FRAMES_FILE, RASTER_FOLDERS, document_faults, keys_of_1_1
from scan2twin.errors import CaptureError


def write_capture(folder: Path, header: CaptureHeader, frames: Sequence[FrameRecord]) -> CaptureDocument:
    """Commit the bundle in `folder`: write frames.jsonl, list every file, and write capture.json last.

    The images (and masks, depth) of `frames` are already in `folder`. An older capture.json goes first, so a
    bundle whose writing was cut short is never taken for a whole one.

    Raises:
        CaptureError: the result would break the format; no capture.json is written.

    """
    committed = folder / CAPTURE_FILE
    committed.unlink(missing_ok=True)
    lines = "".join(frame.model_dump_json() + "\n" for frame in frames)
    (folder / FRAMES_FILE).write_text(lines, encoding="utf-8")
    rasters = [path for name in RASTER_FOLDERS for path in sorted((folder / name).glob("*"))]
    document = CaptureDocument(
        schema="scan2twin.capture",
        version="1.1" if keys_of_1_1(header, frames) else "1.0",
        conventions=CONVENTIONS,
        **{name: getattr(header, name) for name in CaptureHeader.model_fields},
        frame_count=len(frames),
        files=[_describe(folder, path) for path in (folder / FRAMES_FILE, *rasters)],
    )
    if faults := document_faults(document, frames):
        raise CaptureError(*faults)
    partial = folder / f".{CAPTURE_FILE}"
    with partial.open("w", encoding="utf-8") as file:
        file.write(document.model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(committed)
    return document


def _describe(folder: Path, path: Path) -> BundleFile:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return BundleFile(name=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=sha256)

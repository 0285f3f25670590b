"""Read a capture bundle from outside: nothing in it is trusted, and every reason for a refusal is found.

`read_capture` reads the two documents; `check_bundle` looks at the files too; `unpack` takes a bundle out of a
zip. Pixels are looked at by the validate stage.
"""

import hashlib
import json
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import ValidationError

from scan2twin.capture.models import (
    MAX_DOCUMENT_BYTES,
    MAX_FRAMES,
    MAX_UNPACKED_BYTES,
    BundleFile,
    CaptureDocument,
    CaptureHeader,
    FrameRecord,
    Record,
)
from scan2twin.capture.names import LITTER, list_faults, quoted
from scan2twin.errors import CaptureError

CAPTURE_FILE = "capture.json"
FRAMES_FILE = "frames.jsonl"
RASTER_FOLDERS = ("images", "masks", "depth")
CHUNK_BYTES = 2**20
MAX_REASONS = 200  # listed for one document; a hostile one may have a million

# What to do about each kind of wrong value, by pydantic's name of the kind.
REMEDIES = {
    "missing": "add it",
    "extra_forbidden": "remove it or check its spelling",
    "finite_number": "write a finite number, or null where the format allows it",
    "json_invalid": "write valid JSON; was the file cut off?",
}

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Capture:
    """A bundle whose documents are right; `root` is its folder."""

    root: Path
    document: CaptureDocument
    frames: Sequence[FrameRecord]

    def raster(self, folder: str, frame: FrameRecord) -> Path | None:
        """Return the file of `frame` in `folder` ("masks" or "depth"), or None if the bundle has none."""
        name = f"{folder}/{PurePosixPath(frame.file).stem}.png"
        return self.root / name if any(file.name == name for file in self.document.files) else None

    @property
    def is_plain_photos(self) -> bool:
        """Whether nothing tracked the camera: no frame has a pose."""
        return all(frame.pose_world is None for frame in self.frames)


def read_capture(folder: Path) -> Capture:
    """Read capture.json and frames.jsonl of the bundle in `folder` and check them against the format.

    Raises:
        CaptureError: a document is missing or breaks the format; every reason is listed.

    """
    document, faults = _read_document(folder)
    frames: list[FrameRecord] = []
    if document is not None:
        frames, frame_faults = _read_frames(folder)
        faults += frame_faults or document_faults(document, frames)
    if document is None or faults:
        raise CaptureError(*faults)
    return Capture(folder, document, frames)


def check_bundle(folder: Path) -> list[str]:
    """Return every reason to refuse the bundle in `folder`, short of decoding pixels; empty if there is none.

    Besides the documents: links and special files, unlisted and missing files, sizes, SHA-256, total size.
    """
    document, faults = _read_document(folder)
    if document is None:
        return faults
    frames, frame_faults = _read_frames(folder)
    faults += frame_faults or document_faults(document, frames)
    present, folder_faults = _list_folder(folder)
    faults += folder_faults
    listed = {file.name for file in document.files}
    faults += [
        f"{quoted(name)}: in the folder but not in the list of capture.json; remove it or list it"
        for name in sorted(present - listed - {CAPTURE_FILE})
    ]
    safe = [file for file in document.files if file.name in present]
    with ThreadPoolExecutor() as pool:
        faults += [fault for fault in pool.map(lambda file: _content_fault(folder, file), safe) if fault]
    missing = sorted(listed - present)
    return faults + [f"{quoted(name)}: listed in capture.json but not in the folder; copy it" for name in missing]


def is_bundle(path: Path) -> bool:
    """Tell whether `path` is meant as a capture bundle: a folder or a zip with a bundle's document in it, whole or not.

    Another tool's scan is not, even as a zip; a zip that cannot be opened is, for a reader that says what is wrong.
    """
    documents = {CAPTURE_FILE, FRAMES_FILE}
    if path.is_dir():
        return any((path / name).exists() for name in documents)
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.rsplit("/", 1)[-1] in documents for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError):
        return path.suffix.lower() == ".zip"


def document_faults(document: CaptureDocument, frames: Sequence[FrameRecord]) -> list[str]:
    """Return where capture.json and frames.jsonl contradict themselves or each other."""
    faults = [f"{CAPTURE_FILE}: files: {fault}" for fault in list_faults(file.name for file in document.files)]
    listed = {file.name for file in document.files}
    if CAPTURE_FILE in listed:
        faults.append(f"{CAPTURE_FILE}: files: lists itself; remove that entry")
    if FRAMES_FILE not in listed:
        faults.append(f"{CAPTURE_FILE}: files: {FRAMES_FILE} is not listed; add it")
    if (total := sum(file.size for file in document.files)) > MAX_UNPACKED_BYTES:
        faults.append(f"{CAPTURE_FILE}: files: {total} bytes in all, over the limit of {MAX_UNPACKED_BYTES} (4 GiB)")
    if document.version == "1.0" and (newer := keys_of_1_1(document, frames)):
        faults.append(f"{CAPTURE_FILE}: version: is 1.0, but only 1.1 has {', '.join(newer)}")
    if document.frame_count != len(frames):
        faults.append(
            f"{CAPTURE_FILE}: frame_count: is {document.frame_count}, but {FRAMES_FILE} has {len(frames)} lines"
        )
    anchors = [anchor.id for anchor in document.anchors]
    faults += [f"{CAPTURE_FILE}: anchors: id {quoted(id_)} stands twice" for id_ in _repeated(anchors)]
    if document.reference_anchor is not None and document.reference_anchor not in anchors:
        faults.append(f"{CAPTURE_FILE}: reference_anchor: {quoted(document.reference_anchor)} is not in anchors")
    stems = {PurePosixPath(frame.file).stem for frame in frames}
    faults += [
        f"{name}: belongs to no frame; name it like its frame's image or remove it"
        for name in sorted(listed)
        if name.startswith(("masks/", "depth/")) and PurePosixPath(name).stem not in stems
    ]
    used = {frame.file for frame in frames}
    faults += [
        f"{name}: belongs to no frame of {FRAMES_FILE}; remove it"
        for name in sorted(listed)
        if name.startswith("images/") and name not in used
    ]
    return [*faults, *_frame_faults(document, frames, listed)]


def keys_of_1_1(header: CaptureHeader, frames: Sequence[FrameRecord]) -> list[str]:
    """Return what `header` and `frames` say that version 1.0 of the format cannot."""
    lens = header.camera.distortion if header.camera else None
    used = {
        "`support`": any(frame.support is not None for frame in frames),
        "`pose_t`": any(frame.pose_t is not None for frame in frames),
        "frames without `pose_world` and `intrinsics`": any(frame.pose_world is None for frame in frames),
        "a second anchor of the object": bool(_anchors_of_other_passes(header)),
        "`distortion` of a frame": any(frame.distortion is not None for frame in frames),
        "the lens model of `camera.distortion`": lens is not None and lens.model != "opencv",
        "images/*.heic": any(frame.file.endswith(".heic") for frame in frames),
    }
    return [name for name, is_used in used.items() if is_used]


def _anchors_of_other_passes(header: CaptureHeader) -> set[str]:
    """Return the anchors that the object had after it was turned over."""
    return {anchor.id for anchor in header.anchors if anchor.role == "object"} - {header.reference_anchor}


def _frame_faults(document: CaptureDocument, frames: Sequence[FrameRecord], listed: set[str]) -> Iterator[str]:
    tracked = any(frame.pose_world is not None for frame in frames)
    passes = _anchors_of_other_passes(document)
    for stem in _repeated(PurePosixPath(frame.file).stem for frame in frames):
        yield f"{FRAMES_FILE}: images/{stem}.* is the image of more than one frame; give each frame its own"
    for line, frame in enumerate(frames, 1):
        where = f"{FRAMES_FILE}: line {line}:"
        if frame.file not in listed:
            yield f"{where} file: {frame.file} is not in the list of {CAPTURE_FILE}; add it"
        if tracked and (frame.pose_world is None or frame.intrinsics is None):
            yield (
                f"{where} pose_world, intrinsics: unknown, though other frames have them; either every frame has both, "
                "or all are plain photos without"
            )
        if frame.pose_world is None and (frame.intrinsics is not None or frame.anchor is not None or frame.support):
            yield f"{where} pose_world: unknown, but intrinsics or anchors are given; leave all of them out"
        if frame.anchor is not None and frame.anchor.id not in {document.reference_anchor, *passes}:
            yield (
                f"{where} anchor.id: is {quoted(frame.anchor.id)}, but the reference anchor is "
                f"{document.reference_anchor!r}; each frame carries the reference anchor's pose"
            )
        support = [anchor.id for anchor in frame.support or ()]
        others = {anchor.id for anchor in document.anchors} - {document.reference_anchor}
        for id_ in support:
            if id_ not in others:
                yield (
                    f"{where} support: {quoted(id_)} is not one of the anchors of {CAPTURE_FILE} besides the reference"
                )
        yield from (f"{where} support: anchor {quoted(id_)} stands twice" for id_ in _repeated(support))
    for line, (before, frame) in enumerate(pairwise(frames), 2):
        where = f"{FRAMES_FILE}: line {line}:"
        if frame.i <= before.i:
            yield f"{where} i: {frame.i} after {before.i}; frames are numbered in recording order, each once"
        if frame.t < before.t:
            yield f"{where} t: {frame.t} s after {before.t} s; times never decrease: sort the frames"
        if frame.pose_time < before.pose_time:
            yield (
                f"{where} pose_t: the pose is of {frame.pose_time} s, after one of {before.pose_time} s; "
                "times never decrease: sort the frames"
            )


def unpack(zip_path: Path, folder: Path) -> None:
    """Unpack the bundle in `zip_path` into `folder`, which must be empty or not exist.

    The bundle lies at the top of the archive or in its only folder. Only files that its capture.json lists are
    written, never more bytes than listed there; sizes in the archive's headers are not believed.

    Raises:
        CaptureError: the archive is damaged, hostile or not a bundle. `folder` is then as it was.

    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with zipfile.ZipFile(zip_path) as archive:
            _unpack(archive, partial)
        partial.replace(folder)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise CaptureError(f"{zip_path.name}: not a whole zip archive ({error}); copy it again") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack(archive: zipfile.ZipFile, folder: Path) -> None:
    entries = [entry for entry in archive.infolist() if not LITTER.search(entry.filename)]
    root = _root_in_archive([entry.filename for entry in entries])
    entries = [entry for entry in entries if entry.filename != root]
    files = {entry.filename.removeprefix(root): entry for entry in entries if not entry.is_dir()}
    faults = list_faults(entry.filename.removeprefix(root) for entry in entries if not entry.is_dir())
    faults += [fault for entry in entries for fault in _entry_faults(entry, root)]
    if faults:
        raise CaptureError(*faults)
    if CAPTURE_FILE not in files:
        raise CaptureError(f"{CAPTURE_FILE}: not in the archive; without it a capture is not complete")
    _unpack_file(archive, files[CAPTURE_FILE], folder / CAPTURE_FILE, MAX_DOCUMENT_BYTES)
    document, faults = _read_document(folder)
    if document is None:
        raise CaptureError(*faults)
    sizes = {file.name: file.size for file in document.files}
    if (total := sum(sizes.values())) > MAX_UNPACKED_BYTES:
        raise CaptureError(
            f"{CAPTURE_FILE}: files: {total} bytes in all, over the limit of {MAX_UNPACKED_BYTES} (4 GiB)"
        )
    if unlisted := sorted(files.keys() - sizes.keys() - {CAPTURE_FILE}):
        raise CaptureError(*(f"{quoted(name)}: in the archive but not listed in {CAPTURE_FILE}" for name in unlisted))
    for name in files.keys() - {CAPTURE_FILE}:
        _unpack_file(archive, files[name], folder / name, sizes[name])


def _unpack_file(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, limit: int) -> None:
    target.parent.mkdir(exist_ok=True)
    too_long = f"{target.name}: unpacks to more than the {limit} bytes it may have; is it a bomb?"
    inflate(archive, entry, target, limit, too_long)


def _root_in_archive(names: Sequence[str]) -> str:
    """Return "" if the bundle lies at the archive's top, or "folder/" if that one folder holds everything."""
    top = names[0].split("/")[0] + "/" if names and "/" in names[0] else ""
    return top if top not in ("", "../", "./", "/") and all(name.startswith(top) for name in names) else ""


def _entry_faults(entry: zipfile.ZipInfo, root: str) -> Iterator[str]:
    name = entry.filename.removeprefix(root)
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        yield f"{quoted(name)}: is a link or special file; put the file itself into the archive"
    if entry.is_dir() and name.rstrip("/") not in RASTER_FOLDERS:
        yield f"{quoted(name)}: not a folder of a bundle; remove it"
    if entry.flag_bits & 0x1:
        yield f"{quoted(name)}: is encrypted; make the archive without a password"
    elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        yield f"{quoted(name)}: compression method {entry.compress_type}; only deflate and store are read"


def inflate(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, limit: int, too_long: str) -> int:
    """Write one entry to `target` and return its size in bytes; its folder must exist.

    Raises:
        CaptureError: it is longer than `limit` bytes, in the words `too_long`; no more than that is inflated.

    """
    size = 0
    with archive.open(entry) as source, target.open("wb") as sink:
        while chunk := source.read(CHUNK_BYTES):
            size += len(chunk)
            if size > limit:
                raise CaptureError(too_long)
            sink.write(chunk)
    return size


def _read_document(folder: Path) -> tuple[CaptureDocument | None, list[str]]:
    raw, faults = _read_limited(folder / CAPTURE_FILE)
    return (None, faults) if raw is None else _parse(CaptureDocument, raw, f"{CAPTURE_FILE}:")


def _read_frames(folder: Path) -> tuple[list[FrameRecord], list[str]]:
    raw, faults = _read_limited(folder / FRAMES_FILE)
    lines = (raw or b"").splitlines()
    if len(lines) > MAX_FRAMES:
        return [], [f"{FRAMES_FILE}: {len(lines)} lines, over the limit of {MAX_FRAMES} frames; record fewer"]
    frames = []
    for number, line in enumerate(lines, 1):
        frame, line_faults = _parse(FrameRecord, line, f"{FRAMES_FILE}: line {number}:")
        faults += line_faults
        if frame is not None:
            frames.append(frame)
    return frames, faults


def _read_limited(path: Path) -> tuple[bytes | None, list[str]]:
    if path.is_symlink() or not path.is_file():
        return None, [f"{path.name}: missing or not a regular file; is {path.parent} a whole capture?"]
    with path.open("rb") as file:
        raw = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(raw) > MAX_DOCUMENT_BYTES:
        return None, [f"{path.name}: over the limit of {MAX_DOCUMENT_BYTES} bytes; it is not a capture's document"]
    return raw, []


def _parse(model: type[R], raw: bytes, where: str) -> tuple[R | None, list[str]]:
    try:
        return model.model_validate_json(raw), []
    except ValidationError as error:
        reasons = [_reason(where, item) for item in error.errors(include_url=False)[:MAX_REASONS]]
        more = error.error_count() - len(reasons)
        return None, reasons + ([f"{where} … and {more} more faults"] if more else [])


def _reason(where: str, item: Any) -> str:
    field = ".".join(str(part) for part in item["loc"])
    reason = f"{where} {field}: " if field else f"{where} "
    reason += str(item["msg"]).removeprefix("Value error, ")
    if item["type"] not in ("missing", "json_invalid"):  # their input is everything around the fault
        got = json.dumps(item["input"], default=str)
        reason += f", got {got if len(got) <= 80 else got[:77] + '…'}"
    return reason + (f"; {REMEDIES[item['type']]}" if item["type"] in REMEDIES else "")


def _list_folder(folder: Path) -> tuple[set[str], list[str]]:
    """Return the regular files that a bundle may have, and what else lies there. Links are not followed."""
    present: set[str] = set()
    faults: list[str] = []
    for prefix in ("", *(f"{name}/" for name in RASTER_FOLDERS if not (folder / name).is_symlink())):
        if not (folder / prefix).is_dir():
            continue
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                name = prefix + entry.name
                if LITTER.search(name):
                    continue
                if entry.is_symlink():
                    faults.append(f"{quoted(name)}: is a link; put the file itself into the bundle")
                elif entry.is_file(follow_symlinks=False):
                    present.add(name)
                elif not entry.is_dir() or name not in RASTER_FOLDERS:
                    faults.append(f"{quoted(name)}: not a file or folder of a bundle; remove it")
    return present, faults


def _content_fault(folder: Path, file: BundleFile) -> str | None:
    size = (folder / file.name).stat().st_size
    if size != file.size:
        return f"{file.name}: {size} bytes, but {CAPTURE_FILE} lists {file.size}; was it cut off? copy it again"
    with (folder / file.name).open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 != file.sha256:
        return f"{file.name}: SHA-256 is {sha256}, but {CAPTURE_FILE} lists {file.sha256}; copy it again"
    return None


def _repeated(values: Iterable[str]) -> list[str]:
    return sorted(value for value, count in Counter(values).items() if count > 1)

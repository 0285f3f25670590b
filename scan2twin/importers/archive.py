"""Unpacking another tool's zip: only what importers read, under checked names, within the bundle's limit of bytes."""

import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from scan2twin.capture.models import MAX_UNPACKED_BYTES
from scan2twin.capture.names import LITTER, quoted
from scan2twin.capture.reader import inflate
from scan2twin.errors import CaptureError
from scan2twin.importers.scan import PHOTO_SUFFIXES
from scan2twin.importers.video import VIDEO_SUFFIXES
from scan2twin.store.base import DISK_FULL

READ_SUFFIXES = (*PHOTO_SUFFIXES, *VIDEO_SUFFIXES, ".json", ".jsonl", ".txt", ".bin", ".csv", ".npy", "")
MAX_ENTRIES = 50_000


def unpack_foreign(archive_path: Path, folder: Path) -> Path:
    """Unpack into `folder` and return the folder of the scan: the archive's only folder, or `folder` itself.

    Raises:
        CaptureError: the archive is damaged, or an entry is a link, leaves the folder, or is too large.

    """
    try:
        with zipfile.ZipFile(archive_path) as archive:
            entries = [entry for entry in archive.infolist() if not LITTER.search(entry.filename)]
            if len(entries) > MAX_ENTRIES:
                raise CaptureError(f"{archive_path.name}: {len(entries)} files, over the limit of {MAX_ENTRIES}")
            left = MAX_UNPACKED_BYTES
            for entry in entries:
                left -= _unpack_entry(archive, entry, folder, left)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        raise CaptureError(f"{archive_path.name}: not a whole zip archive ({error}); copy it again") from None
    top = list(folder.iterdir())
    return top[0] if len(top) == 1 and top[0].is_dir() else folder


def _unpack_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, limit: int) -> int:
    """Write one entry; return its size."""
    name = PurePosixPath(entry.filename)
    hostile = name.is_absolute() or ".." in name.parts or "\\" in entry.filename or ":" in entry.filename
    if hostile or any(ord(character) < 32 for character in entry.filename):
        raise CaptureError(f"{quoted(entry.filename)}: leaves the archive's folder; make the archive again")
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise CaptureError(f"{quoted(entry.filename)}: is a link or special file; put the file itself into the archive")
    if entry.is_dir() or name.suffix.lower() not in READ_SUFFIXES:
        return 0
    target = folder.joinpath(*name.parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    too_long = f"{quoted(entry.filename)}: unpacks to more than 4 GiB in all; is it a bomb?"
    return inflate(archive, entry, target, limit, too_long)

"""What an artifact store can do, and the rules its keys keep."""

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from scan2twin.errors import InputError, ResourceError, StoreError

# Safe as a file name everywhere and as an S3 key: no empty part, no part that starts with a dot (that rules out
# `.` and `..` and leaves dot files to the directory store), nothing that a shell, a URL or Windows gives a meaning.
_PART = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.,+=@()' -]*[A-Za-z0-9_,+=@()'-])?")
_MAX_PART_CHARACTERS = 200  # file systems take 255; a directory store adds a suffix to its temporary files
_MAX_KEY_CHARACTERS = 1024  # S3's limit, in UTF-8 bytes
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing shows it."""

    key: str
    size: int  # bytes
    modified: float  # seconds since the epoch, by the store's clock


class ArtifactStore(Protocol):
    """Objects under keys such as `captures/2026/11/23/mug/capture.json`; safe for many threads and processes.

    A *folder* is a key prefix that ends where a part ends: `artifacts/mug` holds `artifacts/mug/x`, not
    `artifacts/mug2`. Every method raises InputError for an unsafe key, and StoreError when the store still fails
    after all retries. A reader sees an object whole or not at all, never one that is half-written.
    """

    uri: str

    def put_file(self, key: str, path: Path) -> str:
        """Store the file at `path`, replacing what is there, and return its SHA-256 in hex."""

    def put_bytes(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Store `data` in one atomic step; with `if_absent` only where nothing is yet. Return whether it was."""

    def get_file(self, key: str, path: Path) -> str:
        """Write the object to `path` (its folder exists) and return the SHA-256, in hex, of the bytes read.

        Raises NotFoundError. After any error `path` may hold a part of the object.
        """

    def read_bytes(self, key: str) -> bytes:
        """Return the whole of a small object. Raises NotFoundError."""

    def exists(self, key: str) -> bool:
        """Tell whether an object has exactly this key."""

    def list_objects(self, folder: str) -> Iterator[StoredObject]:
        """Yield every object below `folder`, sorted by key; none if there is no such folder."""

    def list_folders(self, folder: str) -> Sequence[str]:
        """Return the sorted names of the folders directly in `folder`. A store may show folders that are empty."""

    def delete(self, key: str) -> None:
        """Delete the object; nothing happens if there is none."""


def check_key(key: str) -> str:
    """Return `key` if it is safe as a file path below a root and as an S3 key; else raise InputError."""
    parts = key.split("/")
    if len(key) > _MAX_KEY_CHARACTERS or not all(
        len(part) <= _MAX_PART_CHARACTERS and _PART.fullmatch(part) for part in parts
    ):
        raise InputError(
            f"store: unsafe key or file name {key[:200]!r}: use letters, digits and _ - . , + = @ ( ) ' or spaces, "
            f"with no part that is empty, starts with a dot, ends with a dot or is longer than "
            f"{_MAX_PART_CHARACTERS} characters"
        )
    return key


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Translate OSError into ResourceError (the disk is full) or StoreError, with `doing` as the place."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise ResourceError(
                f"{doing}: {error.strerror}: the disk is full; free some space or choose another folder or store"
            ) from error
        raise StoreError(f"{doing}: {error}; check the path, its permissions and its disk") from error

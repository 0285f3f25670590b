"""The artifact store as a plain folder: the default on one machine."""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import BufferedWriter
from pathlib import Path
from typing import IO
from uuid import uuid4

from scan2twin.errors import NotFoundError
from scan2twin.store.base import StoredObject, check_key, disk_errors

_CHUNK_BYTES = 1 << 20
_TEMPORARY = ".writing-"  # no key part may start with a dot, so a temporary file is never taken for an object


class DirectoryStore:
    """Each key is a file below `root`.

    A file appears under its name only when all its bytes are on the disk (write beside, fsync, then rename or
    link), so neither a killed process nor a power cut leaves a half-written object.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uri = str(self.root)

    def put_file(self, key: str, path: Path) -> str:
        """See `ArtifactStore.put_file`."""
        target = self._path(key)
        with disk_errors(f"store {self.uri}: writing {key}"), path.open("rb") as source:
            temporary, digest = self._write_beside(target, source)
            self._publish(temporary, target)
        return digest

    def put_bytes(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        """See `ArtifactStore.put_bytes`."""
        target = self._path(key)
        with disk_errors(f"store {self.uri}: writing {key}"), io.BytesIO(data) as source:
            temporary, _ = self._write_beside(target, source)
            return self._publish(temporary, target, if_absent=if_absent)

    def get_file(self, key: str, path: Path) -> str:
        """See `ArtifactStore.get_file`."""
        source_path = self._existing(key)
        with (
            disk_errors(f"store {self.uri}: copying {key} to {path}"),
            source_path.open("rb") as source,
            path.open("wb") as target,
        ):
            return _copy(source, target)

    def read_bytes(self, key: str) -> bytes:
        """See `ArtifactStore.read_bytes`."""
        with disk_errors(f"store {self.uri}: reading {key}"):
            return self._existing(key).read_bytes()

    def exists(self, key: str) -> bool:
        """See `ArtifactStore.exists`."""
        return self._path(key).is_file()

    def list_objects(self, folder: str) -> Iterator[StoredObject]:
        """See `ArtifactStore.list_objects`."""
        found = []
        for parent, _, names in os.walk(self._path(folder)):
            for name in names:
                path = Path(parent, name)
                if not name.startswith("."):
                    with suppress(FileNotFoundError):  # deleted since the folder was read
                        status = path.stat()
                        found.append(
                            StoredObject(path.relative_to(self.root).as_posix(), status.st_size, status.st_mtime)
                        )
        yield from sorted(found, key=lambda stored: stored.key)

    def list_folders(self, folder: str) -> Sequence[str]:
        """See `ArtifactStore.list_folders`."""
        try:
            with os.scandir(self._path(folder)) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def delete(self, key: str) -> None:
        """See `ArtifactStore.delete`."""
        path = self._path(key)
        with disk_errors(f"store {self.uri}: deleting {key}"):
            if not path.is_file():
                return
            path.unlink(missing_ok=True)
        # Folders that became empty go too. rmdir refuses one in which another process has just put something.
        with suppress(OSError):
            for parent in path.parents:
                if parent == self.root:
                    break
                parent.rmdir()

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _existing(self, key: str) -> Path:
        path = self._path(key)
        if not path.is_file():
            raise NotFoundError(f"store {self.uri}: there is no object {key}")
        return path

    def _write_beside(self, target: Path, source: IO[bytes]) -> tuple[Path, str]:
        """Copy `source` to a temporary file in the folder of `target`, onto the disk; return it and the SHA-256."""
        file = _temporary_in(target.parent)
        temporary = Path(file.name)
        try:
            with file:
                digest = _copy(source, file)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary, digest

    def _publish(self, temporary: Path, target: Path, *, if_absent: bool = False) -> bool:
        """Give the temporary file its name in one atomic step; return False if `if_absent` and the name is taken."""
        try:
            if if_absent:
                os.link(temporary, target)
            else:
                temporary.replace(target)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that the name itself survives a power cut
        finally:
            os.close(folder)
        return True


def _temporary_in(folder: Path) -> BufferedWriter:
    """Open a new temporary file in `folder`, making the folder, which another process may be deleting meanwhile."""
    while True:
        with suppress(FileNotFoundError):
            folder.mkdir(parents=True, exist_ok=True)
            return (folder / f"{_TEMPORARY}{uuid4().hex}").open("xb")


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    """Copy every byte and return their SHA-256 in hex."""
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()

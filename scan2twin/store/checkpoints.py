"""Checkpoints of a running stage, kept in the store so that they outlive the machine that made them.

They lie beside the attempts of the output they are for, named by their content, and are deleted once it is committed:

    artifacts/<capture_id>/<stage>/<fingerprint>/checkpoint/<file>/<time>-<sha256>
"""

import hashlib
import logging
import os
import tempfile
import threading
import time
from contextvars import copy_context
from pathlib import Path
from typing import Self

from scan2twin.errors import Scan2TwinError
from scan2twin.store.base import ArtifactStore, StoredObject
from scan2twin.store.transfer import parallel

log = logging.getLogger("scan2twin")

CHECKPOINT = "checkpoint"
POLL_S = 1.0  # how soon a new file is noticed; beside it, only the upload delays a checkpoint
LAST_UPLOAD_S = 2.0  # what a stopped run gives its last upload; an Airflow task has three seconds to end
_UNFINISHED = (".part", ".partial")  # names under which a stage writes before it renames


class CheckpointKeeper:
    """Keeps a local folder of checkpoints in the store while the block runs; `with` yields after restoring them.

    A file of the folder is uploaded as soon as it is replaced. That is done beside the stage's own work: a store that
    fails costs the checkpoint, never the run. Each file stands for itself, and a stage replaces it by renaming another
    one whose name ends in `.part` or `.partial`.
    """

    def __init__(self, store: ArtifactStore, output_folder: str, folder: Path) -> None:
        self._store, self._prefix, self._folder = store, f"{output_folder}/{CHECKPOINT}", folder
        self._known: dict[str, tuple[int, int]] = {}  # inode and time of change of what the store has
        self._ended = threading.Event()
        self._thread = threading.Thread(target=copy_context().run, args=(self._watch,), name="checkpoints", daemon=True)

    def __enter__(self) -> Self:
        """Restore what an earlier run left, as far as it is whole. Never raises for the store's sake."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._restore()
        except Scan2TwinError as error:
            log.warning("checkpoints cannot be read (%s); starting anew", error)
        self._known = self._present()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; what was replaced last still goes up if that takes no longer than `LAST_UPLOAD_S`."""
        self._ended.set()
        self._thread.join(LAST_UPLOAD_S)

    def _restore(self) -> None:
        for stored in reversed(list(self._store.list_objects(self._prefix))):  # the newest of each file first
            name, sha256 = _parse(self._prefix, stored)
            target = self._folder / name
            if target.exists():
                continue
            arriving = target.with_name(f"{name}.part")
            if self._store.get_file(stored.key, arriving) == sha256:
                arriving.replace(target)
            else:
                arriving.unlink()
                log.warning("checkpoint %s is damaged; it is not used", stored.key)

    def _present(self) -> dict[str, tuple[int, int]]:
        status = {path.name: path.stat() for path in self._folder.iterdir() if path.suffix not in _UNFINISHED}
        return {name: (found.st_ino, found.st_mtime_ns) for name, found in status.items()}

    def _watch(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(POLL_S)
            try:
                for name, state in self._present().items():
                    if self._known.get(name) != state:
                        self._upload(name)
                        self._known[name] = state
            except (Scan2TwinError, OSError) as error:
                log.warning("a checkpoint could not be kept (%s); trying again", error)

    def _upload(self, name: str) -> None:
        """Put one file up under its content's name, then delete the ones before it."""
        with tempfile.TemporaryDirectory(prefix=".uploading-", dir=self._folder.parent) as temporary:
            snapshot = Path(temporary, name)
            os.link(self._folder / name, snapshot)  # stays as it is when the stage replaces the file meanwhile
            with snapshot.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            key = f"{self._prefix}/{name}/{time.time_ns():020d}-{sha256}"
            self._store.put_file(key, snapshot)
        older = [found.key for found in self._store.list_objects(f"{self._prefix}/{name}") if found.key < key]
        parallel(self._store.delete, older)


def discard_checkpoints(store: ArtifactStore, output_folder: str) -> None:
    """Delete the checkpoints of an output that is committed."""
    parallel(store.delete, [stored.key for stored in store.list_objects(f"{output_folder}/{CHECKPOINT}")])


def _parse(prefix: str, stored: StoredObject) -> tuple[str, str]:
    """Return the file's name and the SHA-256 that a checkpoint's key states."""
    name, _, stamp = stored.key.removeprefix(f"{prefix}/").rpartition("/")
    return name, stamp.partition("-")[2]

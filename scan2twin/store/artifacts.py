"""Stage outputs in the store: whole or absent, whoever writes them, however often.

An output's folder is named by its fingerprint. Every attempt to make it uploads below a folder of its own, and
`manifest.json`, which names the winning attempt, is written last and only if there is none yet:

    artifacts/<capture_id>/<stage>/<fingerprint>/<attempt>/…
    artifacts/<capture_id>/<stage>/<fingerprint>/manifest.json
"""

import time
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from pydantic import ValidationError

from scan2twin.errors import IntegrityError, NotFoundError, StoreError
from scan2twin.store.base import ArtifactStore
from scan2twin.store.manifest import FileEntry, Manifest
from scan2twin.store.transfer import parallel

ARTIFACTS = "artifacts"  # the area of every stage's output but the models
MANIFEST = "manifest.json"


def new_attempt() -> str:
    """Return a name for an attempt that no other process can choose; it sorts by time."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid4().hex[:12]}"


def read_manifest(store: ArtifactStore, folder: str) -> Manifest | None:
    """Return the manifest of the output at `folder`, or None if none is committed. Raises IntegrityError."""
    key = f"{folder}/{MANIFEST}"
    try:
        data = store.read_bytes(key)
    except NotFoundError:
        return None
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise IntegrityError(
            f"store {store.uri}: {key} is damaged ({error.error_count()} errors, first: {error.errors()[0]['msg']}); "
            "delete it to have the stage run again"
        ) from None


def upload(store: ArtifactStore, folder: str, attempt: str, source: Path) -> list[FileEntry]:
    """Upload every file below `source` as one attempt at `folder`; nothing is committed yet."""
    paths = sorted(path for path in source.rglob("*") if not path.is_dir())

    def put(path: Path) -> FileEntry:
        name = path.relative_to(source).as_posix()
        size = path.stat().st_size
        return FileEntry(name=name, size=size, sha256=store.put_file(f"{folder}/{attempt}/{name}", path))

    return parallel(put, paths)


def commit(store: ArtifactStore, folder: str, manifest: Manifest) -> Manifest:
    """Commit an uploaded attempt and return the manifest that holds from now on.

    The first attempt to be committed wins. A later one deletes its own files and gets the winner's manifest: same
    fingerprint, so as good.
    """
    data = manifest.model_dump_json(by_alias=True, indent=1).encode()
    if store.put_bytes(f"{folder}/{MANIFEST}", data, if_absent=True):
        return manifest
    winner = read_manifest(store, folder)
    if winner is None:
        raise StoreError(
            f"store {store.uri}: {folder}/{MANIFEST} was deleted while it was written; run the stage again"
        )
    if winner.attempt != manifest.attempt:
        discard(store, folder, manifest.attempt)
    return winner


def discard(store: ArtifactStore, folder: str, attempt: str) -> None:
    """Delete what an attempt that is not committed has uploaded."""
    parallel(store.delete, [stored.key for stored in store.list_objects(f"{folder}/{attempt}")])


def download(store: ArtifactStore, folder: str, manifest: Manifest, target: Path) -> None:
    """Write the files of a committed output below `target` and check every byte. Raises IntegrityError."""
    try:
        download_files(store, f"{folder}/{manifest.attempt}", manifest.files, target)
    except (NotFoundError, IntegrityError) as error:
        raise IntegrityError(
            f"{error}; delete {folder}/{MANIFEST} to have the stage {manifest.stage} run again"
        ) from error


def download_files(store: ArtifactStore, folder: str, files: Sequence[FileEntry], target: Path) -> None:
    """Write `files` of `folder` below `target`, each with the size and SHA-256 its entry states.

    A file that differs is read once more, since a cache or a proxy may have damaged it on its way. Raises
    NotFoundError or IntegrityError.
    """

    def get(entry: FileEntry) -> None:
        key, path = f"{folder}/{entry.name}", target / entry.name
        for _ in range(2):
            sha256 = store.get_file(key, path)
            if sha256 == entry.sha256:
                return
        raise IntegrityError(
            f"store {store.uri}: {key} is damaged: {path.stat().st_size} bytes with SHA-256 {sha256}, expected "
            f"{entry.size} bytes with {entry.sha256}"
        )

    for parent in {(target / entry.name).parent for entry in files}:
        parent.mkdir(parents=True, exist_ok=True)
    parallel(get, files)

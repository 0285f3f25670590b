"""How fast a store is, beside what its server or disk can do when asked in the plainest way."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import urllib3

from scan2twin.errors import StoreError
from scan2twin.memory import PeakMemory
from scan2twin.store import ArtifactStore, open_store
from scan2twin.store.artifacts import discard, download_files, new_attempt, upload
from scan2twin.store.s3 import S3Store
from scan2twin.store.transfer import THREADS, parallel

FILE_BYTES = 500_000  # a frame's image
TOTAL_BYTES = 1_000_000_000
_FOLDER = "artifacts/benchmark/store"

T = TypeVar("T")


def benchmark_store(store_uri: str, total_bytes: int = TOTAL_BYTES) -> dict[str, Any]:
    """Send files of 500 KB to the store and fetch them, hashed and checked, as stages do; then the same bytes raw.

    Raw means: as many threads move the same files between the same disk and the store, on S3 through signed PUT
    and range requests, in a folder as plain copies, with nothing hashed, retried or flushed. Speeds are in 10⁶
    bytes a second of wall time; a ratio is the store's speed over the raw one.
    """
    store = open_store(store_uri)
    count = max(total_bytes // FILE_BYTES, 1)
    attempt, raw_attempt = new_attempt(), new_attempt()
    with tempfile.TemporaryDirectory(prefix="scan2twin-benchmark-") as temporary:
        source, target = Path(temporary) / "source", Path(temporary) / "target"
        _write_files(source, count)
        try:
            with PeakMemory(children=False) as memory:
                upload_s, files = _timed(lambda: upload(store, _FOLDER, attempt, source))
                download_s, _ = _timed(lambda: download_files(store, f"{_FOLDER}/{attempt}", files, target))
            paths = sorted(source.iterdir())
            put, get = _raw_requests(store, Path(temporary) / "copy")
            raw_upload_s, _ = _timed(
                lambda: parallel(lambda path: put(path, f"{_FOLDER}/{raw_attempt}/{path.name}"), paths)
            )
            raw_download_s, _ = _timed(lambda: parallel(lambda path: get(f"{_FOLDER}/{attempt}/{path.name}"), paths))
        finally:
            discard(store, _FOLDER, attempt)
            discard(store, _FOLDER, raw_attempt)
    megabytes = count * FILE_BYTES / 1e6
    return {
        "store": store.uri,
        "files": count,
        "megabytes": megabytes,
        "upload_mb_s": megabytes / upload_s,
        "download_mb_s": megabytes / download_s,
        "raw_upload_mb_s": megabytes / raw_upload_s,
        "raw_download_mb_s": megabytes / raw_download_s,
        "upload_ratio": raw_upload_s / upload_s,
        "download_ratio": raw_download_s / download_s,
        "memory_growth_mb": (memory.peak_bytes - memory.start_bytes) / 1e6,
    }


def _write_files(folder: Path, count: int) -> None:
    folder.mkdir()
    noise = os.urandom(FILE_BYTES)  # nothing on the way can compress it
    for i in range(count):
        (folder / f"{i:06d}.bin").write_bytes(i.to_bytes(8, "big") + noise[8:])


def _timed(action: Callable[[], T]) -> tuple[float, T]:
    """Call `action`; return the seconds it took and what it gave."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def _raw_requests(store: ArtifactStore, scratch: Path) -> tuple[Callable[[Path, str], None], Callable[[str], None]]:
    """Return `put(path, key)` and `get(key)` (to a file in `scratch`), which only move the bytes."""
    scratch.mkdir()
    if isinstance(store, S3Store):
        pool = urllib3.PoolManager(maxsize=THREADS)

        def put(path: Path, key: str) -> None:
            response = pool.request("PUT", store.presigned_url("PUT", key), body=path.read_bytes())
            if response.status != HTTPStatus.OK:
                raise StoreError(f"store {store.uri}: {key}: HTTP {response.status} to a plain PUT")

        def get(key: str) -> None:
            everything = {"Range": f"bytes=0-{FILE_BYTES - 1}"}
            response = pool.request("GET", store.presigned_url("GET", key), headers=everything)
            if response.status != HTTPStatus.PARTIAL_CONTENT or len(response.data) != FILE_BYTES:
                raise StoreError(f"store {store.uri}: {key}: HTTP {response.status} to a range request")
            (scratch / key.rsplit("/", 1)[1]).write_bytes(response.data)

        return put, get

    root = Path(store.uri)

    def copy_in(path: Path, key: str) -> None:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, root / key)

    def copy_out(key: str) -> None:
        shutil.copyfile(root / key, scratch / key.rsplit("/", 1)[1])

    return copy_in, copy_out

"""Outputs in the store: whole or absent, whoever writes them and whenever they are killed."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scan2twin.config import MaskConfig, ReconstructConfig
from scan2twin.errors import InputError, IntegrityError
from scan2twin.stages import Stage
from scan2twin.store import ArtifactStore, open_store
from scan2twin.store.artifacts import commit, discard, download, new_attempt, read_manifest, upload
from scan2twin.store.manifest import Durations, FileEntry, Manifest, fingerprint

FOLDER = "artifacts/mug/mask/" + "0" * 64


def make_manifest(attempt: str, files: list[FileEntry], **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "capture_id": "mug", "stage": "mask", "stage_version": 1, "fingerprint": "0" * 64, "inputs": {}, "config": {},
        "code_version": "0", "libraries": {}, "host": "here", "attempt": attempt, "files": files,
        "durations": Durations(total_s=1, download_s=0, run_s=1, upload_s=0), "peak_memory_mb": 1.0,
        "started_at": datetime.now(UTC), "finished_at": datetime.now(UTC),
    }  # fmt: skip
    return Manifest(**{**fields, **changes})


def write_output(folder: Path, mark: str, files: int = 3) -> Path:
    (folder / "sub").mkdir(parents=True)
    for i in range(files):
        (folder / "sub" / f"{i}.bin").write_bytes(f"{mark} {i} ".encode() * 1000)
    return folder


def commit_output(store: ArtifactStore, source: Path) -> Manifest:
    attempt = new_attempt()
    return commit(store, FOLDER, make_manifest(attempt, upload(store, FOLDER, attempt, source)))


def test_an_output_comes_back_byte_for_byte(store: ArtifactStore, tmp_path: Path) -> None:
    source = write_output(tmp_path / "source", "a")
    assert read_manifest(store, FOLDER) is None
    committed = commit_output(store, source)
    manifest = read_manifest(store, FOLDER)
    assert manifest == committed
    download(store, FOLDER, committed, tmp_path / "back")
    assert {p.relative_to(source): p.read_bytes() for p in source.rglob("*.bin")} == {
        p.relative_to(tmp_path / "back"): p.read_bytes() for p in (tmp_path / "back").rglob("*.bin")
    }


def test_an_upload_without_manifest_is_not_there(store: ArtifactStore, tmp_path: Path) -> None:
    attempt = new_attempt()
    upload(store, FOLDER, attempt, write_output(tmp_path / "source", "a"))
    assert read_manifest(store, FOLDER) is None
    discard(store, FOLDER, attempt)
    assert list(store.list_objects(FOLDER)) == []


def test_the_second_to_commit_takes_over_the_first(store: ArtifactStore, tmp_path: Path) -> None:
    first = commit_output(store, write_output(tmp_path / "a", "a"))
    second = commit_output(store, write_output(tmp_path / "b", "b"))
    assert second == first
    assert {s.key.split("/")[4] for s in store.list_objects(FOLDER)} == {first.attempt, "manifest.json"}


def _race(uri: str, source: str, start: Any, results: Any) -> None:
    store = open_store(uri)
    start.wait()
    results.put(commit_output(store, Path(source)).attempt)


def test_processes_that_race_agree_on_one_whole_output(store_uri: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    sources = [write_output(tmp_path / mark, mark, files=20) for mark in "ab"]
    racers = [context.Process(target=_race, args=(store_uri, str(source), start, results)) for source in sources]
    for racer in racers:
        racer.start()
    attempts = {results.get(timeout=60) for _ in racers}
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    store = open_store(store_uri)
    manifest = read_manifest(store, FOLDER)
    assert manifest is not None
    assert attempts == {manifest.attempt}
    assert {s.key.split("/")[4] for s in store.list_objects(FOLDER)} == {manifest.attempt, "manifest.json"}
    download(store, FOLDER, manifest, tmp_path / "back")


def test_a_killed_writer_leaves_nothing_readable(store_uri: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for i in range(200):
        (source / f"{i:03d}").write_bytes(os.urandom(200_000))
    script = (
        "import sys; from pathlib import Path; from scan2twin.store import open_store;"
        "from scan2twin.store.artifacts import upload;"
        "print('ready', flush=True); upload(open_store(sys.argv[1]), sys.argv[2], 'killed', Path(sys.argv[3]))"
    )
    store = open_store(store_uri)
    with subprocess.Popen(
        [sys.executable, "-c", script, store_uri, FOLDER, str(source)], stdout=subprocess.PIPE
    ) as writer:
        deadline = time.monotonic() + 30
        while len(found := list(store.list_objects(FOLDER))) < 5 and time.monotonic() < deadline:
            pass
        writer.send_signal(signal.SIGKILL)
    assert writer.returncode == -signal.SIGKILL
    assert len(found) >= 5
    # Nothing is committed, every object that shows is whole, and the next writer is not disturbed.
    assert read_manifest(store, FOLDER) is None
    for stored in store.list_objects(FOLDER):
        assert store.read_bytes(stored.key) == (source / stored.key.rsplit("/", 1)[1]).read_bytes()
    manifest = commit_output(store, write_output(tmp_path / "next", "next"))
    download(store, FOLDER, manifest, tmp_path / "back")


@pytest.mark.parametrize("damage", ["cut", "longer", "changed", "gone"])
def test_a_damaged_output_is_refused(store: ArtifactStore, tmp_path: Path, damage: str) -> None:
    manifest = commit_output(store, write_output(tmp_path / "source", "a"))
    key = f"{FOLDER}/{manifest.attempt}/sub/1.bin"
    data = store.read_bytes(key)
    store.delete(key)
    if damage != "gone":
        store.put_bytes(key, {"cut": data[:-1], "longer": data + b"x", "changed": b"X" + data[1:]}[damage])
    with pytest.raises(IntegrityError, match=rf"{key}.*delete {FOLDER}/manifest.json to have the stage mask run again"):
        download(store, FOLDER, manifest, tmp_path / "back")


@pytest.mark.parametrize("data", [b"", b"{}", b"\0\1", b'{"schema": "other"}'])
def test_a_damaged_manifest_is_refused(store: ArtifactStore, data: bytes) -> None:
    store.put_bytes(f"{FOLDER}/manifest.json", data)
    with pytest.raises(IntegrityError, match=rf"{FOLDER}/manifest.json is damaged .*delete it"):
        read_manifest(store, FOLDER)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", ".hidden", "a\\b"])
def test_a_manifest_cannot_name_files_elsewhere(store: ArtifactStore, tmp_path: Path, name: str) -> None:
    good = make_manifest("a", [FileEntry(name="x", size=1, sha256="0" * 64)])
    fields = json.loads(good.model_dump_json(by_alias=True))
    for place in (fields["files"][0], "name"), (fields, "attempt"):
        forged = json.loads(json.dumps(fields))
        (forged["files"][0] if place[1] == "name" else forged)[place[1]] = name
        store.put_bytes(f"{FOLDER}/manifest.json", json.dumps(forged).encode())
        with pytest.raises(IntegrityError, match="unsafe key"):
            read_manifest(store, FOLDER)
    with pytest.raises(InputError, match="unsafe key"):
        store.get_file(f"{FOLDER}/{name}", tmp_path / "x")


def test_a_manifest_of_a_later_release_can_be_read(store: ArtifactStore) -> None:
    manifest = make_manifest("a", [])
    fields = {**manifest.to_json(), "something_new": 1}
    store.put_bytes(f"{FOLDER}/manifest.json", json.dumps(fields).encode())
    assert read_manifest(store, FOLDER) == manifest


STAGE = Stage("mask", "nowhere", ("condition",), "")


def test_the_fingerprint_is_the_documented_hash() -> None:
    config = ReconstructConfig()
    text = json.dumps(
        {"config": config.model_dump(), "inputs": {"condition": "ab"}, "stage": "mask", "version": 1},
        sort_keys=True,
        separators=(",", ":"),
    )
    assert fingerprint(STAGE, config, {"condition": "ab"}) == hashlib.sha256(text.encode()).hexdigest()


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), min_size=2, max_size=5))
def test_the_fingerprint_ignores_the_order_of_inputs(inputs: dict[str, str]) -> None:
    turned = dict(reversed(inputs.items()))
    assert fingerprint(STAGE, MaskConfig(), inputs) == fingerprint(STAGE, MaskConfig(), turned)


def test_everything_that_decides_an_output_changes_its_fingerprint() -> None:
    base = fingerprint(STAGE, MaskConfig(), {"condition": "a"})
    others = [
        fingerprint(Stage("mask", "elsewhere", ("condition",), "", version=2), MaskConfig(), {"condition": "a"}),
        fingerprint(Stage("mask2", "nowhere", ("condition",), ""), MaskConfig(), {"condition": "a"}),
        fingerprint(STAGE, MaskConfig(resolution=256), {"condition": "a"}),
        fingerprint(STAGE, MaskConfig(), {"condition": "b"}),
        fingerprint(STAGE, MaskConfig(), {}),
    ]
    assert len({base, *others}) == 6
    assert fingerprint(Stage("mask", "elsewhere", (), "other words"), MaskConfig(), {"condition": "a"}) == base

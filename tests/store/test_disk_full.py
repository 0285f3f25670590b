"""A disk that runs full while an object is written or fetched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scan2twin.errors import ResourceError
from scan2twin.store import ArtifactStore, open_store

LIMIT_BYTES = 1_000_000

# RLIMIT_FSIZE makes the kernel refuse the write that crosses the limit, for any user and on any file system.
SCRIPT = """
import resource, signal, sys
from pathlib import Path
from scan2twin.errors import ResourceError
from scan2twin.store import open_store
store, action = open_store(sys.argv[1]), sys.argv[2]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    if action == "put_file":
        store.put_file("artifacts/mug/new", Path(sys.argv[4]))
    elif action == "put_bytes":
        store.put_bytes("artifacts/mug/new", Path(sys.argv[4]).read_bytes())
    else:
        store.get_file("artifacts/mug/large", Path(sys.argv[4]))
except ResourceError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def run(store: ArtifactStore, action: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, store.uri, action, str(LIMIT_BYTES), str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("action", ["put_file", "put_bytes"])
def test_a_folder_that_runs_full_keeps_only_whole_objects(tmp_path: Path, action: str) -> None:
    store = open_store(str(tmp_path / "store"))
    store.put_bytes("artifacts/mug/old", b"old")
    (tmp_path / "large").write_bytes(bytes(2 * LIMIT_BYTES))
    result = run(store, action, tmp_path / "large")
    assert result.returncode == ResourceError.exit_code, result.stderr
    assert "artifacts/mug/new" in result.stdout
    assert "the disk is full" in result.stdout
    assert [stored.key for stored in store.list_objects("artifacts")] == ["artifacts/mug/old"]
    assert [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()] == ["old"]


def test_a_download_that_does_not_fit_says_so(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(2 * LIMIT_BYTES))
    store.put_file("artifacts/mug/large", tmp_path / "large")
    result = run(store, "get_file", tmp_path / "target")
    assert result.returncode == ResourceError.exit_code, result.stderr
    assert "the disk is full" in result.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_full_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is not allowed here: {mounted.stderr.decode().strip()}")
    try:
        store = open_store(str(disk))
        store.put_bytes("artifacts/mug/old", b"old")
        (tmp_path / "large").write_bytes(bytes(2 * LIMIT_BYTES))
        with pytest.raises(ResourceError, match=r"writing artifacts/mug/new: .*the disk is full; free some space"):
            store.put_file("artifacts/mug/new", tmp_path / "large")
        assert [path.name for path in disk.rglob("*") if path.is_file()] == ["old"]
    finally:
        subprocess.run(["umount", disk], check=True)

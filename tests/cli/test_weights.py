"""Networks fetched from a real HTTP server on loopback: whole and checked, or not at all."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import urllib3

from scan2twin import weights
from scan2twin.errors import ConfigError, InputError, StoreError
from scan2twin.progress import LogProgress
from scan2twin.weights import WEIGHTS_VARIABLE, fetch_weights, find_weights

CONTENT = bytes(range(256)) * 12_000  # three pieces
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SHA512 = hashlib.sha512(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """/whole.onnx, /cut.onnx (ends early), /moved.onnx (redirects), /weak.onnx (fails twice), all else 404."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/moved.onnx":
            self.send_response(302)
            self.send_header("Location", "/whole.onnx")
            self.end_headers()
            return
        if self.path == "/weak.onnx" and self.asked.count(self.path) < 3:
            self.send_error(503)
            return
        if self.path not in ("/whole.onnx", "/cut.onnx", "/weak.onnx"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:-100] if self.path == "/cut.onnx" else CONTENT)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    handler = type("Handler", (Server,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", asked
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "weights"))
    monkeypatch.setattr(weights, "RETRIES", urllib3.Retry(total=3, backoff_factor=0.01, status_forcelist=(503,)))
    return tmp_path / "weights"


@pytest.mark.parametrize(
    ("path", "algorithm", "expected"),
    [
        ("whole.onnx", "sha256", SHA256),
        ("whole.onnx", "sha512", SHA512.upper()),
        ("moved.onnx", "sha256", SHA256),
        ("weak.onnx", "sha256", SHA256),
    ],
)
def test_what_is_right_is_kept(
    path: str, algorithm: str, expected: str, server: tuple[str, list[str]], folder: Path
) -> None:
    found = fetch_weights(f"{server[0]}/{path}", algorithm, expected, LogProgress())
    assert found == folder / path
    assert found.read_bytes() == CONTENT
    assert list(folder.iterdir()) == [found]
    asked = len(server[1])
    assert fetch_weights(f"{server[0]}/{path}", algorithm, expected, LogProgress()) == found
    assert len(server[1]) == asked  # not fetched again
    assert find_weights(path, "mask.network") == found


@pytest.mark.parametrize(
    ("path", "expected", "error", "message"),
    [
        ("whole.onnx", "0" * 64, InputError, f"its SHA256 is {SHA256}, not 0000"),
        ("cut.onnx", SHA256, StoreError, r"cut\.onnx: cannot be fetched .*100 more expected.*try again later"),
        ("absent.onnx", SHA256, InputError, r"absent\.onnx: the server answers 404"),
        ("whole.onnx", "abc", InputError, "--sha256 abc: not a SHA256 digest"),
        (".onnx/", SHA256, InputError, "not a usable file name; give one with --name"),
    ],
)
def test_of_what_is_wrong_nothing_is_kept(
    path: str, expected: str, error: type[Exception], message: str, server: tuple[str, list[str]], folder: Path
) -> None:
    with pytest.raises(error, match=message):
        fetch_weights(f"{server[0]}/{path}", "sha256", expected, LogProgress())
    assert not folder.exists() or not list(folder.iterdir())


def test_a_wrong_file_does_not_take_the_place_of_a_right_one(server: tuple[str, list[str]], folder: Path) -> None:
    folder.mkdir()
    (folder / "mine.onnx").write_bytes(b"old")
    with pytest.raises(InputError, match="nothing was kept"):
        fetch_weights(f"{server[0]}/whole.onnx", "sha256", "1" * 64, LogProgress(), name="mine.onnx")
    assert (folder / "mine.onnx").read_bytes() == b"old"
    fetch_weights(f"{server[0]}/whole.onnx", "sha256", SHA256, LogProgress(), name="mine.onnx")
    assert (folder / "mine.onnx").read_bytes() == CONTENT


def test_nobody_listens() -> None:
    with pytest.raises(StoreError, match=r"cannot be fetched .*try again later"):
        fetch_weights("http://127.0.0.1:9/net.onnx", "sha256", SHA256, LogProgress())


def test_other_schemes_are_refused() -> None:
    with pytest.raises(InputError, match="give an http:// or https:// address"):
        fetch_weights("file:///etc/hostname", "sha256", SHA256, LogProgress())


def test_a_network_that_is_nowhere_is_named_with_where_it_was_looked_for(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"mask\.network: isnet\.onnx: no such file, neither as a path nor in .*weights"
    ):
        find_weights("isnet.onnx", "mask.network")


def test_the_command_fetches_and_lists(server: tuple[str, list[str]], folder: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "scan2twin", "weights", *arguments], capture_output=True, text=True, env=os.environ
        )

    done = command("fetch", f"{server[0]}/whole.onnx", "--sha256", SHA256)
    assert done.returncode == 0, done.stderr
    assert "--set mask.network=whole.onnx" in done.stderr
    listed = json.loads(command("list", "--json").stdout)
    assert listed == [{"name": "whole.onnx", "bytes": len(CONTENT), "sha256": SHA256}]
    unchecked = command("fetch", f"{server[0]}/whole.onnx")
    assert unchecked.returncode == 2
    assert "give its --sha256 or its --sha512" in unchecked.stderr

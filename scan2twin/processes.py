"""Child processes that never outlive their parent."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

PR_SET_PDEATHSIG = 1  # linux/prctl.h
POLL_INTERVAL_S = 0.05
_libc = ctypes.CDLL(None)  # loaded here, because the child must not load anything between fork and exec


def start_in_own_group(
    arguments: Sequence[str], *, environment: Mapping[str, str], stdout: int | IO[bytes], cwd: Path | None = None
) -> "subprocess.Popen[bytes]":
    """Start a command as the leader of its own process group; standard error joins standard output.

    The kernel sends it SIGTERM when the calling thread ends for any reason, also by SIGKILL (prctl(2),
    PR_SET_PDEATHSIG).
    """
    parent = os.getpid()

    def end_with_parent() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before prctl took hold
            os._exit(1)

    return subprocess.Popen(
        arguments, env=dict(environment), stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.STDOUT,
        cwd=cwd, process_group=0, preexec_fn=end_with_parent,
    )  # fmt: skip


def end_groups(processes: "Iterable[subprocess.Popen[bytes]]", grace_s: float) -> None:
    """End processes from `start_in_own_group` with all their descendants: SIGTERM, then SIGKILL after `grace_s`.

    Safe in a signal handler that interrupted a wait for one of them: it observes the children without reaping them.
    """
    leaders = [process for process in processes if process.returncode is None]
    family = [member for leader in leaders for member in _family(leader.pid)]
    for leader in leaders:
        _signal_group(leader.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while any(map(_alive, family)) and time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL_S)
    for leader in leaders:
        _signal_group(leader.pid, signal.SIGKILL)
    for member in family:  # those that left the group
        with suppress(psutil.NoSuchProcess):
            member.kill()


def _family(pid: int) -> list[psutil.Process]:
    try:
        leader = psutil.Process(pid)
        return [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)

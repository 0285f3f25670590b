"""Children end with their parent, and with everything they started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from scan2twin.processes import end_groups, start_in_own_group

LIMIT_S = 20.0
STUBBORN = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)\n"
)


def wait_until_gone(pid: int) -> bool:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def start(script: str) -> "subprocess.Popen[bytes]":
    process = start_in_own_group([sys.executable, "-c", script], environment=dict(os.environ), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_a_child_ends_when_its_parent_is_killed() -> None:
    parent_script = (
        "import os, subprocess, time\n"
        "from scan2twin.processes import start_in_own_group\n"
        "child = start_in_own_group(['sleep', '60'], environment=dict(os.environ), stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent_script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        parent.send_signal(signal.SIGKILL)
    assert wait_until_gone(child)


def test_a_child_may_tidy_up_before_it_ends(tmp_path: Path) -> None:
    note = tmp_path / "note"
    process = start(
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(note)!r}).write_text('tidy'), sys.exit(0)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    end_groups([process], LIMIT_S)
    assert process.wait(LIMIT_S) == 0
    assert note.read_text() == "tidy"


def test_a_child_that_ignores_sigterm_is_killed() -> None:
    process = start(STUBBORN)
    end_groups([process], grace_s=0.2)
    assert process.wait(LIMIT_S) == -signal.SIGKILL


@pytest.mark.parametrize("own_session", [False, True])
def test_what_a_child_started_ends_with_it(own_session: bool) -> None:
    process = start(
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], start_new_session={own_session})\n"
        "time.sleep(60)\n"
    )
    (grandchild,) = psutil.Process(process.pid).children()
    end_groups([process], grace_s=0.2)
    process.wait(LIMIT_S)
    assert wait_until_gone(grandchild.pid)


def test_ending_what_has_ended_does_nothing() -> None:
    process = start("print('ready', flush=True)")
    process.wait(LIMIT_S)
    end_groups([process], grace_s=0)
    assert process.returncode == 0

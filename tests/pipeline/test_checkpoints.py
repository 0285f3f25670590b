"""A killed reconstruction goes on from its checkpoint in the store, or starts anew, and ends with the same model."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import checkpointed_run
import pytest

from scan2twin.runner import import_capture
from scan2twin.store import ArtifactStore
from scan2twin.store.artifacts import read_manifest
from scan2twin.store.checkpoints import POLL_S
from scan2twin.store.directory import DirectoryStore

CAPTURE_ID = "test-capture"
LIMIT_S = 120.0
BALL = Path(__file__).parents[1] / "reconstruction"  # has views_of_a_ball.py


@dataclass
class Machine:
    """One store and what runs on it."""

    root: Path

    @property
    def store(self) -> ArtifactStore:
        return DirectoryStore(self.root / "store")

    def start(self, *options: str) -> "subprocess.Popen[str]":
        workdir = self.root / "work"
        workdir.mkdir(exist_ok=True)
        command = [sys.executable, checkpointed_run.__file__, self.store.uri, CAPTURE_ID, str(workdir), *options]
        return subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": str(BALL)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def finish(self) -> str:
        said, _ = self.start().communicate(timeout=LIMIT_S)
        return said

    def held(self) -> bool:
        return (self.root / "work" / "held").exists()

    def checkpoints(self) -> list[str]:
        return [found.key for found in self.store.list_objects("artifacts") if "/checkpoint/" in found.key]

    def result(self) -> dict[str, str]:
        """Return the SHA-256 of every file of the reconstruction that does not tell how it went."""
        (folder,) = self.store.list_folders(f"artifacts/{CAPTURE_ID}/reconstruct")
        manifest = read_manifest(self.store, f"artifacts/{CAPTURE_ID}/reconstruct/{folder}")
        assert manifest is not None
        return {
            entry.name: entry.sha256 for entry in manifest.files if entry.name not in ("metrics.jsonl", "result.json")
        }


@pytest.fixture
def killed(tmp_path: Path, make_capture: Callable[..., Path]) -> Machine:
    """A machine whose run was killed by SIGKILL in the middle, after a checkpoint had reached the store."""
    machine = Machine(tmp_path / "killed")
    import_capture(machine.store, make_capture())
    run = machine.start("hold")
    try:
        deadline = time.monotonic() + LIMIT_S
        while not machine.held() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        # What is uploaded now is the last; the ones before it are deleted after it.
        settled: list[str] = []
        while (len(settled) != 1 or machine.checkpoints() != settled) and time.monotonic() < deadline:
            settled = machine.checkpoints()
            time.sleep(2.5 * POLL_S)
    finally:
        run.send_signal(signal.SIGKILL)
    said, _ = run.communicate()
    assert len(machine.checkpoints()) == 1, said
    return machine


def test_a_killed_reconstruction_goes_on_from_the_store_and_ends_with_the_same_model(
    killed: Machine, tmp_path: Path
) -> None:
    damaged, undisturbed = Machine(tmp_path / "damaged"), Machine(tmp_path / "undisturbed")
    for other in (damaged, undisturbed):
        shutil.copytree(killed.root / "store", other.root / "store")
    (checkpoint,) = damaged.checkpoints()
    path = damaged.root / "store" / checkpoint
    path.write_bytes(path.read_bytes()[:1000])
    undisturbed.store.delete(checkpoint)

    assert "going on from the checkpoint at iteration 64" in killed.finish()
    said = damaged.finish()
    assert "is damaged; it is not used" in said
    assert "going on" not in said
    undisturbed.finish()

    assert killed.result() == damaged.result() == undisturbed.result()
    assert "mesh.npz" in killed.result()
    for machine in (killed, damaged, undisturbed):
        assert machine.checkpoints() == []

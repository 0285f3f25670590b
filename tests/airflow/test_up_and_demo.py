"""`scan2twin up` and `scan2twin demo` with a real Airflow: scheduler, API server, tasks, child processes.

The tests share one Airflow and run in the order in which they stand here.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from scan2twin.airflow_home import AirflowHome
from scan2twin.airflow_server import AirflowApi, AirflowError, free_port
from scan2twin.capture.reader import read_capture
from scan2twin.capture.writer import write_capture
from scan2twin.orchestration_benchmark import LITTLE_WORK
from scan2twin.stages import STAGES
from scan2twin.store import ArtifactStore
from scan2twin.store.directory import DirectoryStore
from scan2twin.store.models import latest_model

SPOT = Path(__file__).parents[1] / "data/spot-capture/capture"
EVERY = 5  # of spot's 60 frames
DAG_ID = "reconstruct_capture"
LIMIT_S = 900.0  # for anything; an idle machine needs less than a tenth
pytestmark = pytest.mark.timeout(2 * LIMIT_S)
ENDLESS = {**LITTLE_WORK, "reconstruct": {**LITTLE_WORK["reconstruct"], "iterations": 100_000}}
CONF = {"capture_id": "spot-small", "preset": "draft", "overrides": LITTLE_WORK}


def wait_for(what: str, look: Callable[[], Any]) -> Any:
    """Return the first true value of `look`."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {LIMIT_S:.0f} s")


class Up:
    """A running `scan2twin up` on a directory store that holds one small capture."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = AirflowHome(folder / "home")
        self.store: ArtifactStore = DirectoryStore(folder / "store")
        self.capture = folder / "capture"
        thin_out(SPOT, self.capture)
        self.port = free_port()
        settings = {"SCAN2TWIN_RETRIES": "1", "SCAN2TWIN_RETRY_DELAY_S": "0", "SCAN2TWIN_STORE": str(folder / "store")}
        self.output = folder / "up.log"
        with self.output.open("wb") as output:
            command = [sys.executable, "-m", "scan2twin", "up", str(self.capture)]
            self.process = subprocess.Popen(
                [*command, "--home", str(self.home.folder), "--port", str(self.port)],
                env={**os.environ, **settings}, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        ready = wait_for("scan2twin up", lambda: self._ended() or re.search(r"password +(\S+)", self.said()))
        self.api = AirflowApi(f"http://127.0.0.1:{self.port}", ready[1])

    def said(self) -> str:
        return self.output.read_text()

    def _ended(self) -> None:
        assert self.process.poll() is None, self.said()

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def start(self, run_id: str, conf: dict[str, Any]) -> None:
        self.api.trigger(DAG_ID, run_id, conf)

    def tasks(self, run_id: str) -> dict[str, dict[str, Any]]:
        return {task["task_id"]: task for task in self.api.task_instances(DAG_ID, run_id)}

    def finish(self, run_id: str) -> str:
        """Wait for the end of a run and return its state."""
        state: str = wait_for(run_id, lambda: {self.api.run_state(DAG_ID, run_id)} & {"success", "failed"}).pop()
        return state

    def running_stage(self, name: str) -> psutil.Process | None:
        """Return the child process that runs a stage now."""
        for process in self.family():
            try:
                if process.cmdline()[2:5] == ["scan2twin", "stage", name]:
                    return process
            except psutil.NoSuchProcess:
                continue
        return None

    def log(self, run_id: str, task: str, attempt: int = 1) -> str:
        return self.home.task_log(DAG_ID, run_id, task, attempt).read_text()


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def thin_out(source: Path, target: Path) -> None:
    """Write a capture with every EVERY-th frame of another one."""
    capture = read_capture(source)
    frames = capture.frames[::EVERY]
    (target / "images").mkdir(parents=True)
    for frame in frames:
        shutil.copy(source / frame.file, target / frame.file)
    write_capture(target, capture.document, frames)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = Up(tmp_path_factory.mktemp("up"))
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.wait()


def test_everything_listens_on_loopback_only(up: Up) -> None:
    listening = [
        connection.laddr.ip
        for process in up.family()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1"}


def test_secrets_are_for_this_user_alone(up: Up) -> None:
    for name in ("airflow.cfg", "secrets.json", "passwords.json", "store.env"):
        assert (up.home.folder / name).stat().st_mode & 0o077 == 0
    with pytest.raises(AirflowError, match="401"):
        AirflowApi(up.api.url, "guess").request("GET", "/dags")


def test_a_hostile_capture_fails_at_once_and_nothing_runs_after_it(up: Up) -> None:
    hostile = json.loads((SPOT / "capture.json").read_text())
    hostile["capture_id"] = "hostile"
    hostile["files"][0]["name"] = "../../../etc/passwd"
    up.store.put_bytes("captures/2026/11/20/hostile/capture.json", json.dumps(hostile).encode())
    up.start("hostile", CONF | {"capture_id": "hostile"})
    assert up.finish("hostile") == "failed"
    tasks = up.tasks("hostile")
    assert (tasks["validate"]["state"], tasks["validate"]["try_number"]) == ("failed", 1)  # one retry was allowed
    assert {tasks[stage.name]["state"] for stage in STAGES[1:]} == {"upstream_failed"}
    assert "etc/passwd" in up.log("hostile", "validate")
    assert list(up.store.list_objects("artifacts")) == list(up.store.list_objects("models")) == []


def test_unknown_parameters_are_refused_by_the_first_stage(up: Up) -> None:
    up.start("unknown", CONF | {"iterations": 5})
    assert up.finish("unknown") == "failed"
    assert up.tasks("unknown")["validate"]["try_number"] == 1
    assert "no such parameter: iterations" in up.log("unknown", "validate")


@pytest.mark.parametrize(
    "wrong", [{"overrides": {"reconstruct": {"iteration": 5}}}, {"preset": "best"}, {"capture_id": "../spot"}]
)
def test_wrong_parameters_start_no_run(up: Up, wrong: dict[str, Any]) -> None:
    with pytest.raises(AirflowError, match="400"):
        up.start("wrong", CONF | wrong)


def test_a_killed_stage_is_tried_again_and_the_model_is_published(up: Up) -> None:
    up.start("good", CONF)
    wait_for("the mask stage", lambda: up.running_stage("mask")).send_signal(signal.SIGKILL)
    assert up.finish("good") == "success"
    tasks = up.tasks("good")
    assert {task["state"] for task in tasks.values()} == {"success"}
    assert {stage.name: tasks[stage.name]["try_number"] for stage in STAGES} == {
        stage.name: 2 if stage.name == "mask" else 1 for stage in STAGES
    }
    assert "exit code -9" in up.log("good", "mask", attempt=1)
    shown = up.api.request("GET", f"/dags/{DAG_ID}/dagRuns/good/taskInstances/publish/logs/1")  # what the pages show
    assert "committed at models/spot-small/" in json.dumps(shown["content"])
    model = latest_model(up.store, "spot-small")
    assert model is not None
    passed_on = up.api.request("GET", f"/dags/{DAG_ID}/dagRuns/good/taskInstances/publish/xcomEntries/return_value")
    assert passed_on["value"]["fingerprint"] == model.fingerprint
    assert passed_on["value"].keys() == {"manifest", "fingerprint"}


def test_ending_a_task_ends_its_stage(up: Up) -> None:
    up.start("ended", CONF | {"overrides": ENDLESS})
    stage = wait_for("the reconstruct stage", lambda: up.running_stage("reconstruct"))
    up.api.request(
        "PATCH",
        f"/dags/{DAG_ID}/dagRuns/ended/taskInstances/reconstruct?update_mask=new_state",
        {"new_state": "failed"},
    )
    wait_for("the end of the stage", lambda: not is_alive(stage))
    assert up.finish("ended") == "failed"


def test_a_second_up_in_the_same_folder_is_refused(up: Up) -> None:
    second = scan2twin("up", "--home", str(up.home.folder), "--port", str(free_port()))
    assert second.returncode == 2
    assert f"process {up.process.pid}" in second.stdout


def test_a_port_that_is_taken_is_refused(up: Up, tmp_path: Path) -> None:
    refused = scan2twin("up", "--home", str(tmp_path), "--store", str(tmp_path / "store"), "--port", str(up.port))
    assert refused.returncode == 2
    assert f"--port {up.port}" in refused.stdout


def test_one_interrupt_ends_everything(up: Up) -> None:
    # Clearing a task runs it again, which is the quickest way to a stage that takes long.
    cleared = {"dag_run_id": "ended", "task_ids": ["reconstruct"], "only_failed": False, "dry_run": False}
    up.api.request("POST", f"/dags/{DAG_ID}/clearTaskInstances", cleared)
    wait_for("the reconstruct stage", lambda: up.running_stage("reconstruct"))
    family = up.family()
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 130
    assert [process.pid for process in family if is_alive(process)] == []


def test_the_demo_leaves_the_model_and_no_process(up: Up, tmp_path: Path) -> None:
    done = scan2twin(
        "demo", "--out", str(tmp_path), "--capture", str(up.capture), "--preset", "draft",
        "--config", json.dumps(LITTLE_WORK), "--home", str(up.home.folder), "--store", str(up.folder / "store"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert {"model.glb", "model.json", "report.json", "preview.png"} <= {path.name for path in tmp_path.iterdir()}
    for stage in STAGES:
        assert f"\n{stage.name}\n" in done.stdout
    assert not any(str(up.home.folder) in str(process.info["environ"]) for process in psutil.process_iter(["environ"]))


def test_a_demo_that_fails_says_which_stage_and_why(up: Up, tmp_path: Path) -> None:
    few = {**LITTLE_WORK, "validate": {"min_frames": 50}}
    done = scan2twin(
        "demo", "--out", str(tmp_path / "out"), "--capture", str(up.capture), "--config", json.dumps(few),
        "--home", str(up.home.folder), "--store", str(up.folder / "store"),
    )  # fmt: skip
    assert done.returncode == 1
    assert "stage validate failed" in done.stdout
    assert "at least 50 are needed" in done.stdout
    assert not (tmp_path / "out").exists()


def scan2twin(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "scan2twin", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip

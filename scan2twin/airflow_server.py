"""A local Airflow: its processes, started and ended together, and a client of its REST API."""

import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import urllib3

from scan2twin.airflow_home import HOST, USER, AirflowHome
from scan2twin.errors import InputError, Scan2TwinError
from scan2twin.processes import end_groups, start_in_own_group

# The local runner never defers a task, so only long-lived installations need the triggerer.
TRIGGERER = "triggerer"
API_SERVER = "api-server"
COMPONENTS = (API_SERVER, "scheduler", "dag-processor")
# A log server would listen on every interface; the API server reads the same files.
_OPTIONS = {"scheduler": ["--skip-serve-logs"], TRIGGERER: ["--skip-serve-logs"]}
START_TIMEOUT_S = 600.0  # it takes 20 s; slow machines, and those that do other things, much longer
POLL_INTERVAL_S = 0.25
STOP_GRACE_S = 6.0  # a running stage has 3 s of it to end by itself
REQUEST_TIMEOUT_S = 10.0
LOG_TAIL_LINES = 25
# A busy machine may keep one answer waiting; only what changes nothing is asked again.
_RETRIES = urllib3.Retry(
    connect=0, read=3, status=3, other=0, status_forcelist=(500, 502, 503, 504), allowed_methods=("GET",),
    backoff_factor=0.5, raise_on_status=False,
)  # fmt: skip


class AirflowError(Scan2TwinError):
    """The local Airflow does not start, ended unasked, or refuses a request."""


class AirflowApi:
    """The few calls of Airflow's REST API (version 2) that scan2twin makes."""

    def __init__(self, url: str, password: str, user: str = USER) -> None:
        self.url = url
        self._credentials = {"username": user, "password": password}
        self._token = ""

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request to /api/v2`path` and return the answer.

        Raises:
            AirflowError: Airflow refuses; the message holds its reasons.
            urllib3.exceptions.HTTPError: no answer.

        """
        if not self._token:
            self._token = self._send("POST", "/auth/token", self._credentials)["access_token"]
        return self._send(method, f"/api/v2{path}", body, {"Authorization": f"Bearer {self._token}"})

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> None:
        """Start a run."""
        self.request(
            "POST", f"/dags/{dag_id}/dagRuns", {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf)}
        )

    def set_paused(self, dag_id: str, paused: bool) -> None:
        """Pause a DAG, so that its runs wait, or let it go on."""
        self.request("PATCH", f"/dags/{dag_id}?update_mask=is_paused", {"is_paused": paused})

    def fail_unfinished_runs(self, dag_id: str) -> None:
        """Mark every run failed that is queued or running."""
        for run in self.request("GET", f"/dags/{dag_id}/dagRuns?state=queued&state=running&limit=100")["dag_runs"]:
            self.request("PATCH", f"/dags/{dag_id}/dagRuns/{run['dag_run_id']}?update_mask=state", {"state": "failed"})

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return a run's state: queued, running, success or failed."""
        return str(self.request("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"])

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the tasks of a run as Airflow describes them."""
        listed = self.request("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")
        tasks: list[dict[str, Any]] = listed["task_instances"]
        return tasks

    def _send(self, method: str, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Any:
        answer = urllib3.request(
            method, self.url + path, json=body, headers=headers, timeout=REQUEST_TIMEOUT_S, retries=_RETRIES
        )
        if answer.status >= 400:
            text = answer.data.decode(errors="replace")
            raise AirflowError(f"Airflow: {method} {path}: {answer.status}: {text[:2000]}")
        return answer.json()


class LocalAirflow(AbstractContextManager["LocalAirflow"]):
    """Airflow's processes on this machine, on loopback only; all of them end with the context, or with this process.

    The caller holds `home.locked()`. `environment` (the store, the runner) is added to the processes' own; once they
    run, the attribute of that name is all that they run with. Without `port` a free one is chosen.
    """

    def __init__(
        self,
        home: AirflowHome,
        environment: Mapping[str, str],
        *,
        port: int | None = None,
        components: tuple[str, ...] = COMPONENTS,
    ) -> None:
        self.home = home
        self.port = port or free_port()
        self.url = f"http://{HOST}:{self.port}"
        self._added = dict(environment)
        self._components = components
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Start the processes; `wait_until_ready` then waits for them."""
        check_port_is_free(self.port)
        with self._stack as stack:  # ends what was started if anything here fails
            secrets = self.home.configure(self.port)
            self.password = secrets.password
            self.api = AirflowApi(self.url, secrets.password)
            stack.callback(lambda: end_groups(self._processes.values(), STOP_GRACE_S))
            self.environment = self.home.environment() | self._added
            self._migrate()
            for component in self._components:
                self._start(component, [component, *_OPTIONS.get(component, [])])
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes."""
        self._stack.close()

    def wait_until_ready(self, dag_id: str) -> None:
        """Wait until the DAG can be run. Raises AirflowError if Airflow ends, cannot load it, or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._ready(dag_id):
            self.check()
            if time.monotonic() > deadline:
                raise AirflowError(
                    f"the local Airflow is not ready after {START_TIMEOUT_S:.0f} s; see {self.home.logs}/*.log"
                )
            time.sleep(POLL_INTERVAL_S)

    def check(self) -> None:
        """Raise AirflowError if a process of Airflow has ended."""
        for component, process in self._processes.items():
            if process.poll() is not None:
                raise AirflowError(self._ended(component, process.returncode))

    def _ready(self, dag_id: str) -> bool:
        try:
            urllib3.request("GET", f"{self.url}/execution/health", timeout=REQUEST_TIMEOUT_S, retries=False)
            health = self.api.request("GET", "/monitor/health")
        except urllib3.exceptions.HTTPError:  # it does not listen yet
            return False
        heartbeats = [health[name.replace("-", "_")]["status"] for name in self._components if name != API_SERVER]
        if broken := self.api.request("GET", "/importErrors")["import_errors"]:
            raise AirflowError(*(f"{item['filename']} cannot be loaded: {item['stack_trace']}" for item in broken))
        dags = self.api.request("GET", f"/dags?dag_id_pattern={dag_id}")["dags"]
        return set(heartbeats) <= {"healthy"} and any(dag["dag_id"] == dag_id for dag in dags)

    def _migrate(self) -> None:
        if not self.home.needs_migration():
            return
        process = self._start("migration", ["db", "migrate"])
        if process.wait() != 0:
            raise AirflowError(self._ended("migration", process.returncode))
        del self._processes["migration"]
        self.home.migrated()

    def _start(self, name: str, arguments: list[str]) -> "subprocess.Popen[bytes]":
        with self._log_of(name).open("wb") as log:
            process = start_in_own_group(
                [sys.executable, "-m", "airflow", *arguments], environment=self.environment, stdout=log
            )
        self._processes[name] = process
        return process

    def _log_of(self, name: str) -> Path:
        return self.home.logs / f"{name}.log"

    def _ended(self, name: str, exit_code: int) -> str:
        path = self._log_of(name)
        tail = path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n".join([f"Airflow's {name} ended with exit code {exit_code}; the end of {path}:", *tail])


def free_port() -> int:
    """Return a port on which nothing listens now."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def check_port_is_free(port: int) -> None:
    """Raise InputError if something listens on `port`."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"--port {port}: {error.strerror}; end what listens there or choose another port"
            ) from None

"""Airflow with the Kubernetes runner as the tests see it: what they start, break, wait for and read."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
from api_double import ApiDouble
from cluster import Fault, PodFault
from fault_proxy import FaultProxy
from webhook import Webhook

from scan2twin.airflow_server import AirflowApi, AirflowError, LocalAirflow
from scan2twin.store import ArtifactStore

DAG_ID = "reconstruct_capture"
LIMIT_S = 300.0


class Studio:
    """Airflow with the Kubernetes runner, its cluster and its store behind a proxy that can break requests."""

    def __init__(
        self, airflow: LocalAirflow, kubernetes: ApiDouble, proxy: FaultProxy, store: ArtifactStore, hook: Webhook
    ) -> None:
        self.airflow, self.kubernetes, self.proxy, self.store = airflow, kubernetes, proxy, store
        self.told = hook.told  # what the webhook heard
        self.cluster = kubernetes.cluster

    @property
    def api(self) -> AirflowApi:
        return self.airflow.api

    def start(self, run_id: str, capture_id: str, **conf: Any) -> None:
        self.api.trigger(DAG_ID, run_id, {"capture_id": capture_id, "preset": "standard", **conf})

    def finish(self, run_id: str, dag_id: str = DAG_ID) -> str:
        """Wait for the end of a run and return its state."""
        state: str = self.wait_for(run_id, lambda: {self.api.run_state(dag_id, run_id)} & {"success", "failed"}).pop()
        return state

    def runs(self, pattern: str) -> dict[str, dict[str, Any]]:
        """Return the conf of each run of `reconstruct_capture` whose id has this in it."""
        found = self.request("GET", f"/dags/{DAG_ID}/dagRuns?limit=100&run_id_pattern=%25{pattern}%25")["dag_runs"]
        return {run["dag_run_id"]: run["conf"] for run in found}

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Ask Airflow's API, again while SQLite is locked, as it is now and then where the scheduler writes too."""

        def answer() -> tuple[Any] | None:
            try:
                return (self.api.request(method, path, body),)
            except AirflowError as error:
                if "atabase" not in str(error):
                    raise
                return None

        return self.wait_for(f"an answer to {method} {path}", answer)[0]

    def tries(self, run_id: str) -> dict[str, int]:
        """Return how often each task of a run was tried."""
        return {task["task_id"]: task["try_number"] for task in self.api.task_instances(DAG_ID, run_id)}

    def log(self, run_id: str, task: str, attempt: int, dag_id: str = DAG_ID) -> str:
        path = self.airflow.home.task_log(dag_id, run_id, task, attempt)
        return path.read_text() if path.exists() else ""

    def break_pod(self, kind: Fault, capture_id: str, stage: str, **options: Any) -> None:
        """Let something happen to the next pod of this stage of this capture."""
        labels = {"scan2twin/capture": capture_id, "scan2twin/stage": stage}
        self.cluster.faults.append(PodFault(kind, labels, **options))

    def pods_of(self, capture_id: str) -> list[str]:
        """Return the stage of every pod there ever was of a capture; the double's own tests start others."""
        labels = [metadata["labels"] for metadata in self.cluster.started]
        return [label["scan2twin/stage"] for label in labels if label.get("scan2twin/capture") == capture_id]

    @contextmanager
    def without_scheduler(self) -> Iterator[None]:
        """End the scheduler as its container's death would, tasks and all, and start another one at the end.

        A worker that lived on would hold the scheduler's connection to the database open, and with it whatever the
        scheduler had locked at that moment: the next scheduler would wait for ever.
        """
        scheduler = self.airflow._processes["scheduler"]
        family = [psutil.Process(scheduler.pid), *psutil.Process(scheduler.pid).children(recursive=True)]
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: none notices the death of another
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        scheduler.wait()
        try:
            yield
        finally:
            self.airflow._start("scheduler", ["scheduler", "--skip-serve-logs"])

    def wait_for(self, what: str, look: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            if found := look():
                return found
            self.airflow.check()
            time.sleep(0.2)
        raise AssertionError(f"{what}: not within {LIMIT_S:.0f} s")

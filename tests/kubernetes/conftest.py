"""One cluster, one S3 server and one Airflow for all tests of the Kubernetes runner."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "store"))  # the fault proxy

from api_double import ApiDouble  # noqa: E402
from cluster import Cluster, Fault, PodFault  # noqa: E402
from fault_proxy import FaultProxy  # noqa: E402
from small_image import make_image  # noqa: E402

from scan2twin.airflow_home import AirflowHome  # noqa: E402
from scan2twin.airflow_server import COMPONENTS, TRIGGERER, AirflowApi, LocalAirflow  # noqa: E402
from scan2twin.s3server import EmbeddedS3  # noqa: E402
from scan2twin.store import ArtifactStore, open_store  # noqa: E402

DAG_ID = "reconstruct_capture"
NAMESPACE = "scan2twin"
SECRET = "scan2twin-store"
LIMIT_S = 600.0
PRELOAD = '"""Loaded once by the scheduler, whose children the tasks are."""\n\nimport operators.kubernetes\n'


@pytest.fixture(scope="session")
def s3() -> Iterator[EmbeddedS3]:
    with EmbeddedS3() as server:
        yield server


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, s3: EmbeddedS3) -> Cluster:
    folder = tmp_path_factory.mktemp("cluster")
    return Cluster(folder / "pods", make_image(folder / "image"), {NAMESPACE}, {SECRET: s3.environment})


@pytest.fixture(scope="session")
def api(cluster: Cluster) -> Iterator[ApiDouble]:
    with ApiDouble(cluster) as server:
        yield server


class Studio:
    """Airflow with the Kubernetes runner, its cluster and its store behind a proxy that can break requests."""

    def __init__(self, airflow: LocalAirflow, kubernetes: ApiDouble, proxy: FaultProxy, store: ArtifactStore) -> None:
        self.airflow, self.kubernetes, self.proxy, self.store = airflow, kubernetes, proxy, store
        self.cluster = kubernetes.cluster
        self._orphans: list[int] = []  # process groups of schedulers that were killed: their workers live on

    @property
    def api(self) -> AirflowApi:
        return self.airflow.api

    def start(self, run_id: str, capture_id: str, **conf: Any) -> None:
        self.api.trigger(DAG_ID, run_id, {"capture_id": capture_id, "preset": "standard", **conf})

    def finish(self, run_id: str) -> str:
        """Wait for the end of a run and return its state."""
        state: str = self.wait_for(run_id, lambda: {self.api.run_state(DAG_ID, run_id)} & {"success", "failed"}).pop()
        return state

    def tries(self, run_id: str) -> dict[str, int]:
        """Return how often each task of a run was tried."""
        return {task["task_id"]: task["try_number"] for task in self.api.task_instances(DAG_ID, run_id)}

    def log(self, run_id: str, task: str, attempt: int) -> str:
        path = self.airflow.home.task_log(DAG_ID, run_id, task, attempt)
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
        """End the scheduler as a power cut would, and start another one at the end."""
        scheduler = self.airflow._processes["scheduler"]
        scheduler.kill()
        scheduler.wait()
        self._orphans.append(scheduler.pid)
        try:
            yield
        finally:
            self.airflow._start("scheduler", ["scheduler", "--skip-serve-logs"])

    def end_orphans(self) -> None:
        """End what the killed schedulers left running."""
        for group in self._orphans:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    def wait_for(self, what: str, look: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            if found := look():
                return found
            self.airflow.check()
            time.sleep(0.2)
        raise AssertionError(f"{what}: not within {LIMIT_S:.0f} s")


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory, api: ApiDouble, s3: EmbeddedS3) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("studio")
    connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(api.kubeconfig(folder / "kubeconfig"))}}
    home = AirflowHome(folder / "home")
    (home.folder / "config").mkdir(parents=True)
    (home.folder / "config" / "airflow_local_settings.py").write_text(PRELOAD)
    with FaultProxy(s3.endpoint) as proxy, home.locked(), pytest.MonkeyPatch.context() as patch:
        uri = f"s3+http://{proxy.endpoint}"
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        settings = {
            "SCAN2TWIN_RUNNER": "kubernetes", "SCAN2TWIN_STORE": uri, "SCAN2TWIN_MAX_ACTIVE_RUNS": "8",
            "SCAN2TWIN_RETRIES": "4", "SCAN2TWIN_RETRY_DELAY_S": "0",
            "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps(connection), "PYTHONPATH": str(HERE.parents[1]),
        }  # fmt: skip
        with LocalAirflow(home, settings, components=(*COMPONENTS, TRIGGERER)) as airflow:
            airflow.wait_until_ready(DAG_ID)
            api.calls.clear()  # from here on they are Airflow's
            studio = Studio(airflow, api, proxy, open_store(s3.uri))
            yield studio
            studio.end_orphans()

"""One cluster, one S3 server and one Airflow for all tests of the Kubernetes runner."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "store"), str(HERE.parent / "airflow")]  # the fault proxy, the webhook

from api_double import AIRFLOW, ApiDouble  # noqa: E402
from cluster import Cluster  # noqa: E402
from fault_proxy import FaultProxy  # noqa: E402
from postgres import Postgres, programs  # noqa: E402
from small_image import make_image  # noqa: E402
from studio import DAG_ID, Studio  # noqa: E402
from webhook import Webhook  # noqa: E402

from scan2twin.airflow_home import AirflowHome  # noqa: E402
from scan2twin.airflow_server import COMPONENTS, TRIGGERER, LocalAirflow  # noqa: E402
from scan2twin.s3server import EmbeddedS3  # noqa: E402
from scan2twin.store import open_store  # noqa: E402

NAMESPACE = "scan2twin"
SECRET = "scan2twin-store"
AREAS = ("captures", "artifacts", "models")
DEADLINE_S = 5.0  # of every run; each takes longer
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


@pytest.fixture(scope="session")
def database_url() -> Iterator[str | None]:
    """A database for Airflow; without PostgreSQL on this machine it keeps a SQLite file."""
    if programs() is None:
        yield None
        return
    with Postgres() as server:
        yield server.url


@pytest.fixture(scope="session")
def studio(
    tmp_path_factory: pytest.TempPathFactory, api: ApiDouble, s3: EmbeddedS3, database_url: str | None
) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("studio")
    connection = {
        "conn_type": "kubernetes",
        "extra": {"kube_config_path": str(api.kubeconfig(folder / "kubeconfig", AIRFLOW))},
    }
    home = AirflowHome(folder / "home", database_url)
    (home.folder / "config").mkdir(parents=True)
    (home.folder / "config" / "airflow_local_settings.py").write_text(PRELOAD)
    with FaultProxy(s3.endpoint) as proxy, Webhook() as hook, home.locked(), pytest.MonkeyPatch.context() as patch:
        uri = f"s3+http://{proxy.endpoint}"
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        settings = {
            "SCAN2TWIN_RUNNER": "kubernetes", "SCAN2TWIN_STORE": uri, "SCAN2TWIN_MAX_ACTIVE_RUNS": "8",
            "SCAN2TWIN_CAPTURE_KEYS": "1", "SCAN2TWIN_RETRIES": "4", "SCAN2TWIN_RETRY_DELAY_S": "0",
            "SCAN2TWIN_WEBHOOK": hook.url, "SCAN2TWIN_DEADLINE_H": str(DEADLINE_S / 3600),
            "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps(connection), "PYTHONPATH": str(HERE.parents[1]),
        }  # fmt: skip
        with LocalAirflow(home, settings, components=(*COMPONENTS, TRIGGERER)) as airflow:
            airflow.wait_until_ready(DAG_ID)
            store = open_store(s3.uri)
            for area in AREAS:  # a pod's keys may make no bucket
                store.put_bytes(f"{area}/first", b"")
                store.delete(f"{area}/first")
            yield Studio(airflow, api, proxy, store, hook)

"""The ingest API as part of Airflow's API server: who may pair phones, which store they fill, how runs start."""

import os
import re
from typing import Annotated, Any

from airflow.api.common.trigger_dag import trigger_dag
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.configuration import conf
from airflow.exceptions import DagNotFound, DagRunAlreadyExists
from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
from airflow.utils.types import DagRunTriggeredByType
from fastapi import Depends
from sqlalchemy import select

from plugins.api import Host, create_app
from plugins.tokens import signing_key
from plugins.uploads import Uploads
from plugins.views import ViewHost
from scan2twin.capture.models import CAPTURE_ID_PATTERN
from scan2twin.errors import ConfigError, StoreError
from scan2twin.store import open_store
from scan2twin.store.s3 import S3Store

DAG_ID = "reconstruct_capture"
UPLOAD_STORE_VARIABLE = "SCAN2TWIN_UPLOAD_STORE"  # the store as phones reach it
PUBLIC_URL_VARIABLE = "SCAN2TWIN_PUBLIC_URL"  # this API server as phones reach it
PRESET_VARIABLE = "SCAN2TWIN_UPLOAD_PRESET"  # of the runs that uploads start

_may_start = requires_access_dag(method="POST", access_entity=DagAccessEntity.RUN, param_dag_id=DAG_ID)
_may_see = requires_access_dag(method="GET", access_entity=DagAccessEntity.RUN, param_dag_id=DAG_ID)


def operator(user: GetUserDep, allowed: Annotated[None, Depends(_may_start)]) -> str:
    """Return the name of the signed-in user, who may start runs of the DAG; 401 or 403 otherwise."""
    return str(user.get_name())


def reader(user: GetUserDep, allowed: Annotated[None, Depends(_may_see)]) -> str:
    """Return the name of the signed-in user, who may see the DAG's runs; 401 or 403 otherwise."""
    return str(user.get_name())


def uploads() -> Uploads:
    """Return the uploads of the configured store. Raises ConfigError if phones cannot upload to it."""
    store = open_store()
    outside = open_store(os.environ.get(UPLOAD_STORE_VARIABLE) or store.uri)
    if not isinstance(store, S3Store) or not isinstance(outside, S3Store):
        raise ConfigError(f"store {store.uri}: phones upload to S3 only; set SCAN2TWIN_STORE to an S3 store")
    return Uploads(store, outside)


def start_run(capture_id: str, user: str) -> str:
    """Start the run that makes the model of a capture, or find it started, and return its id."""
    run_id = f"upload-{capture_id}"
    run_conf: dict[str, Any] = {"capture_id": capture_id}
    if preset := os.environ.get(PRESET_VARIABLE):
        run_conf["preset"] = preset
    try:
        trigger_dag(
            DAG_ID, triggered_by=DagRunTriggeredByType.REST_API, triggering_user_name=user, run_id=run_id, conf=run_conf
        )
    except DagRunAlreadyExists:  # the answer to an earlier request was lost
        return run_id
    except DagNotFound as error:
        raise StoreError(f"Airflow has not loaded {DAG_ID} yet: {error}") from error
    return run_id


def capture_of_run(run_id: str) -> str | None:
    """Return the capture that a run is for, or None if there is no such run."""
    with create_session() as session:
        found = session.scalar(select(DagRun.conf).where(DagRun.dag_id == DAG_ID, DagRun.run_id == run_id))
    capture_id = (found or {}).get("capture_id")
    return capture_id if isinstance(capture_id, str) and re.fullmatch(CAPTURE_ID_PATTERN, capture_id) else None


app = create_app(
    Host(
        operator=operator,
        uploads=uploads,
        signing_key=lambda: signing_key(conf.get_mandatory_value("api", "secret_key")),
        start_run=start_run,
        public_url=lambda: os.environ.get(PUBLIC_URL_VARIABLE),
    ),
    ViewHost(reader=reader, store=open_store, capture_of_run=capture_of_run),
)

"""The ingest API as part of Airflow's API server: who may pair phones, which store they fill, how runs start."""

import json
import os
import re
from typing import Annotated, Any
from urllib.parse import quote

from airflow.api.common.trigger_dag import trigger_dag
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.configuration import conf
from airflow.exceptions import DagNotFound, DagRunAlreadyExists
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from airflow.utils.types import DagRunTriggeredByType
from fastapi import Depends
from sqlalchemy import select

from plugins.api import Host, create_app
from plugins.gallery import Run
from plugins.tokens import signing_key
from plugins.uploads import Uploads
from plugins.views import ViewHost
from scan2twin.capture.models import CAPTURE_ID_PATTERN
from scan2twin.config import Preset, resolve_config
from scan2twin.errors import ConfigError, StoreError
from scan2twin.runner import committed_outputs
from scan2twin.store import ArtifactStore, open_store
from scan2twin.store.s3 import S3Store

DAG_ID = "reconstruct_capture"
UPLOAD_STORE_VARIABLE = "SCAN2TWIN_UPLOAD_STORE"  # the store as phones reach it
PUBLIC_URL_VARIABLE = "SCAN2TWIN_PUBLIC_URL"  # this API server as phones reach it
PRESET_VARIABLE = "SCAN2TWIN_UPLOAD_PRESET"  # of the runs that uploads start
OVERRIDES_VARIABLE = "SCAN2TWIN_UPLOAD_OVERRIDES"  # likewise, JSON such as {"export": {"web": true}}
REVIEW_TASK = "review_masks"
MAX_RUNS = 1000  # looked at for the gallery, the newest

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
    run_options()  # no upload that no run could follow
    return Uploads(store, outside)


def run_options() -> dict[str, Any]:
    """Return preset and overrides of the runs that uploads start. Raises ConfigError if they are none."""
    options: dict[str, Any] = {}
    try:
        if preset := os.environ.get(PRESET_VARIABLE):
            options["preset"] = Preset(preset).value
        if overrides := os.environ.get(OVERRIDES_VARIABLE):
            options["overrides"] = dict(json.loads(overrides))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{PRESET_VARIABLE}, {OVERRIDES_VARIABLE}: {error}") from None
    resolve_config(options.get("preset", Preset.STANDARD), options.get("overrides", {}))
    return options


def start_run(capture_id: str, user: str) -> str:
    """Start the run that makes the model of a capture, or find it started, and return its id."""
    run_id = f"upload-{capture_id}"
    run_conf = {"capture_id": capture_id, **run_options()}
    try:
        trigger_dag(
            DAG_ID, triggered_by=DagRunTriggeredByType.REST_API, triggering_user_name=user, run_id=run_id, conf=run_conf
        )
    except DagRunAlreadyExists:  # the answer to an earlier request was lost
        return run_id
    except DagNotFound as error:
        raise StoreError(f"Airflow has not loaded {DAG_ID} yet: {error}") from error
    return run_id


def run_of(run_id: str) -> Run | None:
    """Return a run of the DAG, or None if there is none of that id or it is for no capture."""
    with create_session() as session:
        found = session.execute(
            select(DagRun.run_id, DagRun.conf, DagRun.state).where(DagRun.dag_id == DAG_ID, DagRun.run_id == run_id)
        ).one_or_none()
        failed_task = session.scalar(
            select(TaskInstance.task_id)
            .where(TaskInstance.dag_id == DAG_ID, TaskInstance.run_id == run_id, TaskInstance.state == "failed")
            .order_by(TaskInstance.start_date)
            .limit(1)
        )
    return None if found is None else _run(found.run_id, found.conf, found.state, failed_task)


def latest_runs() -> dict[str, Run]:
    """Return the latest run of each capture that was run lately, by the capture's id."""
    with create_session() as session:
        found = session.execute(
            select(DagRun.run_id, DagRun.conf, DagRun.state)
            .where(DagRun.dag_id == DAG_ID)
            .order_by(DagRun.id.desc())
            .limit(MAX_RUNS)
        ).all()
    runs = [run for row in reversed(found) if (run := _run(*row))]
    return {run.capture_id: run for run in runs}


def _run(run_id: str, run_conf: Any, state: Any, failed_task: str | None = None) -> Run | None:
    options = run_conf if isinstance(run_conf, dict) else {}
    capture_id = options.get("capture_id")
    if not isinstance(capture_id, str) or not re.fullmatch(CAPTURE_ID_PATTERN, capture_id):
        return None
    preset, overrides = options.get("preset", str(Preset.STANDARD)), options.get("overrides", {})
    return Run(run_id, capture_id, str(state), str(preset), overrides, failed_task)


def stage_output(store: ArtifactStore, run: Run, stage: str) -> str | None:
    """Return the key prefix of what a stage left in a run; None if it has not ended, or fell back to another preset.

    Raises InputError if the capture is gone or the run's options are none.
    """
    try:
        config = resolve_config(run.preset, dict(run.overrides))
    except ValueError as error:  # no such preset
        raise ConfigError(f"run {run.run_id}: {error}") from None
    found = committed_outputs(store, run.capture_id, config, [stage])[stage]
    return found and f"{found[0]}/{found[1].attempt}"


def review_path(run_id: str) -> str:
    """Return the path of Airflow's API at which the review of a run's masks is seen and answered."""
    return f"/api/v2/dags/{DAG_ID}/dagRuns/{quote(run_id, safe='')}/taskInstances/{REVIEW_TASK}/-1/hitlDetails"


app = create_app(
    Host(
        operator=operator,
        uploads=uploads,
        signing_key=lambda: signing_key(conf.get_mandatory_value("api", "secret_key")),
        start_run=start_run,
        public_url=lambda: os.environ.get(PUBLIC_URL_VARIABLE),
    ),
    ViewHost(
        reader=reader,
        store=open_store,
        run=run_of,
        latest_runs=latest_runs,
        stage_output=stage_output,
        review_path=review_path,
    ),
)

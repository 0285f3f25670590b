"""Starts runs of `reconstruct_capture`, many in one task; a run that exists already is left alone."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from airflow.sdk.exceptions import AirflowException, ErrorType

log = logging.getLogger(__name__)

DAG_ID = "reconstruct_capture"


def start_runs(capture_ids: Iterable[str], run_id: Callable[[str], str], conf: Mapping[str, Any]) -> list[str]:
    """Start a run for each capture and return the ids of those that did not exist.

    Ids that follow from the capture and the occasion make this safe to repeat. It speaks to the task's supervisor as
    TriggerDagRunOperator does (airflow.sdk.execution_time), which would need a task of its own for each capture.

    Raises:
        AirflowException: Airflow refuses a run, and not because it exists.

    """
    from airflow.sdk.execution_time.comms import ErrorResponse, TriggerDagRun
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    started = []
    for capture_id in capture_ids:
        name = run_id(capture_id)
        answer = SUPERVISOR_COMMS.send(
            TriggerDagRun(dag_id=DAG_ID, run_id=name, conf={"capture_id": capture_id, **conf}, reset_dag_run=False)
        )
        if not isinstance(answer, ErrorResponse):
            started.append(name)
        elif answer.error != ErrorType.DAGRUN_ALREADY_EXISTS:
            raise AirflowException(f"run {name} of {DAG_ID} cannot be started: {answer.error}: {answer.detail}")
    log.info("started %d runs of %s", len(started), DAG_ID)
    return started

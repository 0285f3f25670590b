"""Tells a webhook of runs that failed or take too long. Airflow imports this by name, also in its triggerer."""

import asyncio
import json
import logging
import os
import urllib.request
from typing import Any

log = logging.getLogger(__name__)

WEBHOOK_VARIABLE = "SCAN2TWIN_WEBHOOK"
TIMEOUT_S = 10.0


def on_failure(context: Any) -> None:
    """Tell that a run failed; for `on_failure_callback`.

    Of a run that failed without a task, Airflow says only its id and its DAG.
    """
    run = context.get("dag_run")
    conf = dict(run.conf or {}) if run else {}
    _post({"event": "failed", "dag": context["dag"].dag_id, "run": context["run_id"], "conf": conf})


async def on_deadline(**kwargs: Any) -> None:
    """Tell that a run takes longer than it should; for a DeadlineAlert."""
    run = (kwargs.get("context") or {}).get("dag_run") or {}
    await asyncio.to_thread(_post, {"event": "late", "dag": run.get("dag_id"), "run": run.get("dag_run_id")})


def _post(message: dict[str, Any]) -> None:
    """Send `message` to the webhook as JSON. A webhook that fails is logged: it must not make matters worse."""
    url = os.environ.get(WEBHOOK_VARIABLE)
    if not url:
        return
    request = urllib.request.Request(
        url, json.dumps(message).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            pass
    except OSError as error:
        log.warning("%s: %s cannot be told of %s: %s", WEBHOOK_VARIABLE, url, message, error)

"""Follows a run of a local Airflow through the log files of its tasks."""

import json
import re
from collections.abc import Iterator
from typing import Any

from scan2twin.airflow_server import LocalAirflow

_STAGE_OUTPUT = "airflow.task.operators"  # the logger of what an operator says itself
_LOG_LINE = re.compile(r"\S+ \S+ (?P<level>[A-Z]+) +\[\S+ \S+ \S+\] (?P<text>.*)")  # scan2twin.logs.FORMAT


class RunFollower:
    """Reads what the tasks of one run log, each line once."""

    def __init__(self, airflow: LocalAirflow, dag_id: str, run_id: str) -> None:
        self._airflow = airflow
        self._dag_id, self._run_id = dag_id, run_id
        self._read: dict[tuple[str, int], int] = {}  # bytes read of each task's attempt

    def new_lines(self) -> Iterator[tuple[str, str]]:
        """Yield (task, line) for what was logged since the last call, of the latest attempt of each task."""
        for task in self._airflow.api.task_instances(self._dag_id, self._run_id):
            if task["try_number"]:
                for line in self._new_lines_of(task["task_id"], task["try_number"]):
                    yield task["task_id"], line

    def _new_lines_of(self, task_id: str, attempt: int) -> Iterator[str]:
        path = self._airflow.home.task_log(self._dag_id, self._run_id, task_id, attempt)
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read.get((task_id, attempt), 0))
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]  # the last line may still be in the writing
        self._read[task_id, attempt] = self._read.get((task_id, attempt), 0) + len(whole)
        for line in whole.splitlines():
            yield from _for_people(json.loads(line))


def _for_people(record: dict[str, Any]) -> Iterator[str]:
    """Yield a stage's output and errors; leave out what Airflow says of its own work."""
    if record.get("logger", "").startswith(_STAGE_OUTPUT):
        yield _without_ids(record["event"])
    elif record.get("level") in ("error", "critical"):
        yield from (error["exc_value"] for error in record.get("error_detail") or [{"exc_value": record["event"]}])


def _without_ids(line: str) -> str:
    """Shorten a line of a stage's log to its text, and to its level where that says something."""
    match = _LOG_LINE.fullmatch(line)
    if not match:
        return line
    return match["text"] if match["level"] == "INFO" else f"{match['level'].lower()}: {match['text']}"

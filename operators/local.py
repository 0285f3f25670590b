"""The local runner: a stage as a child process of its Airflow task."""

import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperator

from operators.contract import KILLED, read_result, refuse_unknown_conf, stage_arguments, stage_failure
from operators.out_of_memory import out_of_memory_failure
from scan2twin.memory import out_of_memory_kills
from scan2twin.processes import end_groups, start_in_own_group
from scan2twin.stages import Stage

_LOG_LINE = re.compile(r"\S+ \S+ (DEBUG|INFO|WARNING|ERROR|CRITICAL) ")  # scan2twin.logs.FORMAT
# Airflow kills a task 5 s after asking it to end; the stage must be gone by then.
KILL_GRACE_S = 3.0
RESULT_FILE = "result.json"  # in the folder that the child process starts in


class LocalStageOperator(BaseOperator):  # type: ignore[misc]  # airflow is untyped here
    """Run a stage as a child process, which ends with its task whatever ends the task.

    Its output becomes the task's log, line by line; its exit code decides whether Airflow tries again.
    """

    template_fields = ("arguments",)
    ui_color = "#d7e8f7"

    def __init__(self, *, stage: Stage, **options: Any) -> None:
        super().__init__(execution_timeout=timedelta(seconds=stage.resources.timeout_s), **options)
        self.stage = stage
        self.arguments = stage_arguments(stage, RESULT_FILE)
        self._process: subprocess.Popen[bytes] | None = None

    def execute(self, context: Any) -> dict[str, str]:
        """Run the stage to its end and return the manifest's URI and the fingerprint."""
        refuse_unknown_conf(context["dag_run"].conf, context["dag"].params)
        kills_before = out_of_memory_kills()
        with tempfile.TemporaryDirectory(prefix="scan2twin-task-") as folder:
            self._process = start_in_own_group(
                [sys.executable, "-m", "scan2twin", *self.arguments],
                environment=stage_environment(os.environ), stdout=subprocess.PIPE, cwd=Path(folder),
            )  # fmt: skip
            assert self._process.stdout is not None
            for line in self._process.stdout:
                text = line.decode(errors="backslashreplace").rstrip()
                self.log.log(level_of(text), "%s", text)
            exit_code = self._process.wait()
            if exit_code in KILLED and out_of_memory_kills() > kills_before:
                raise out_of_memory_failure(self.stage, context["params"])
            if exit_code:
                raise stage_failure(self.stage.name, exit_code)
            return read_result(Path(folder, RESULT_FILE))

    def on_kill(self) -> None:
        """End the stage with its task."""
        if self._process:
            end_groups([self._process], KILL_GRACE_S)


def stage_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a stage may see of the task's environment: all but Airflow's own settings and secrets."""
    return {name: value for name, value in environment.items() if not name.lstrip("_").startswith("AIRFLOW")}


def level_of(line: str) -> int:
    """Return the level at which a line of a stage's output belongs into the task's log."""
    if line.startswith("error:"):  # the last word of the command line
        return logging.ERROR
    match = _LOG_LINE.match(line)
    return logging.getLevelNamesMapping()[match[1]] if match else logging.INFO

"""What Airflow and a stage say to each other, the same for every runner: arguments, run parameters, exit codes."""

import json
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from scan2twin.errors import InputError, ResourceError, StoreError
from scan2twin.stages import Stage

KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)  # as subprocess reports it, and as shells and containers do
NEVER_AGAIN = (InputError.exit_code, ResourceError.exit_code)  # the same stage would end in the same way
_MEANING = {
    InputError.exit_code: "its input or configuration is wrong; correct it, then clear the task",
    StoreError.exit_code: "the artifact store cannot be reached",
    ResourceError.exit_code: "memory or disk ran out: choose a smaller preset or a larger machine, then clear the task",
    **dict.fromkeys(KILLED, "it was killed"),
}


def stage_arguments(stage: Stage, result: str) -> list[str]:
    """Return the arguments of `scan2twin` that run `stage`, with Jinja templates for the run's parameters.

    Each value stays in one argument together with its option, so that no parameter can become another option.
    `result` is the path of the JSON file that the stage leaves.
    """
    return [
        "stage",
        stage.name,
        "--capture={{ params.capture_id }}",
        "--preset={{ params.preset }}",
        "--config={{ params.overrides | tojson }}",
        "--{{ '' if params.allow_smaller_preset else 'no-' }}allow-smaller-preset",
        "--run={{ run_id }}",
        f"--result={result}",
    ]


def read_result(path: Path) -> dict[str, str]:
    """Return what a stage's `--result` file says and Airflow passes on: the manifest's URI and the fingerprint."""
    return manifest_reference(json.loads(path.read_bytes()))


def manifest_reference(result: Mapping[str, Any]) -> dict[str, str]:
    """Keep the manifest's URI and the fingerprint of a stage's result; the truth is the manifest in the store."""
    return {"manifest": result["manifest"], "fingerprint": result["fingerprint"]}


def refuse_unknown_conf(conf: Mapping[str, Any] | None, known: Iterable[str]) -> None:
    """Raise AirflowFailException, which is not retried, if a run was started with parameters that do not exist.

    Airflow itself checks the values of known parameters and lets unknown ones pass.
    """
    known = sorted(known)
    unknown = sorted(set(conf or {}) - set(known))
    if unknown:
        raise AirflowFailException(
            f"run conf: no such parameter: {', '.join(unknown)}; start the run again with only {', '.join(known)}"
        )


def stage_failure(stage: str, exit_code: int) -> AirflowException:
    """Return the exception that tells Airflow whether to try the stage again after `exit_code`."""
    meaning = _MEANING.get(exit_code, "it failed")
    message = f"stage {stage} ended with exit code {exit_code}: {meaning}. The lines above say why."
    return AirflowFailException(message) if exit_code in NEVER_AGAIN else AirflowException(message)

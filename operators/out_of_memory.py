"""What an operator does when the kernel or Kubernetes ended a stage because memory ran out.

A stage that notices by itself falls back to the smaller preset in the same process (scan2twin.fallback). A stage that
was killed cannot, so its operator writes the note from which the next try, and every later stage, knows.
"""

from collections.abc import Mapping
from typing import Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from scan2twin.stages import Stage


def out_of_memory_failure(stage: Stage, params: Mapping[str, Any]) -> AirflowException:
    """Return the exception for a stage killed because memory ran out: tried again if a smaller preset may be used.

    Raises StoreError if the store cannot be reached; that is tried again like any other failure.
    """
    message = f"stage {stage.name} was killed because memory ran out"
    smaller = _smaller_next_time(stage, params)
    if smaller is None:
        return AirflowFailException(
            f"{message}; choose a smaller preset than {params['preset']}, set allow_smaller_preset, or give the stage "
            f"more memory than {stage.resources.memory_with(params['preset'])}"
        )
    return AirflowException(f"{message} with preset {params['preset']}; the next try uses preset {smaller}")


def _smaller_next_time(stage: Stage, params: Mapping[str, Any]) -> str | None:
    """Write the note and return the preset of the next try; None if there is nothing smaller to try."""
    # Imported where they are needed: they bring the store's client along.
    from scan2twin.config import resolve_config
    from scan2twin.fallback import next_smaller, note_out_of_memory
    from scan2twin.runner import find_capture, fingerprints, output_folder
    from scan2twin.store import open_store

    preset, overrides, capture_id = params["preset"], params["overrides"], params["capture_id"]
    smaller = next_smaller(preset, overrides) if params["allow_smaller_preset"] else None
    if smaller is None:
        return None
    store = open_store()
    known = fingerprints(find_capture(store, capture_id), resolve_config(preset, overrides))
    folder = output_folder(capture_id, stage, known[stage.name])
    return str(smaller.preset) if note_out_of_memory(store, folder, "killed by the kernel") else None

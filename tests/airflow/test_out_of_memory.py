"""What an operator does when a stage was killed for its memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scan2twin.config import resolve_config
from scan2twin.fallback import ran_out_of_memory
from scan2twin.runner import find_capture, fingerprints, import_capture, output_folder
from scan2twin.stages import stage_named
from scan2twin.store import STORE_VARIABLE, ArtifactStore, open_store

STAGE = stage_named("reconstruct")
PARAMS: dict[str, Any] = {
    "capture_id": "test-capture", "preset": "standard", "overrides": {"reconstruct": {"seed": 3}},
    "allow_smaller_preset": True,
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path, make_capture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "store"))
    store = open_store()
    import_capture(store, make_capture())
    return store


def folder(store: ArtifactStore) -> str:
    config = resolve_config(PARAMS["preset"], PARAMS["overrides"])
    return output_folder("test-capture", STAGE, fingerprints(find_capture(store, "test-capture"), config)[STAGE.name])


def failure(**changes: Any) -> tuple[bool, str]:
    """Return whether Airflow tries again, and the message."""
    from airflow.sdk.exceptions import AirflowFailException

    from operators.out_of_memory import out_of_memory_failure

    raised = out_of_memory_failure(STAGE, PARAMS | changes)
    return not isinstance(raised, AirflowFailException), str(raised)


def test_the_next_try_uses_the_smaller_preset_once(store: ArtifactStore) -> None:
    again, message = failure()
    assert again
    assert "the next try uses preset draft" in message
    assert ran_out_of_memory(store, folder(store))
    again, message = failure()  # the smaller one was killed too
    assert not again
    assert "6Gi" in message


@pytest.mark.parametrize("changes", [{"allow_smaller_preset": False}, {"preset": "draft"}])
def test_without_permission_or_a_smaller_preset_nothing_is_tried_again(
    store: ArtifactStore, changes: dict[str, Any]
) -> None:
    again, message = failure(**changes)
    assert not again
    assert f"a smaller preset than {changes.get('preset', 'standard')}" in message
    assert not ran_out_of_memory(store, folder(store))


def test_a_local_stage_that_the_kernel_killed_for_its_memory_is_told_from_one_that_was_killed(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from types import SimpleNamespace

    from airflow.sdk.exceptions import AirflowException

    import operators.local as module

    program = tmp_path / "killed.sh"  # takes the place of Python: the kernel cannot be asked to kill for memory here
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(program))
    context: Any = {"dag_run": SimpleNamespace(conf={}), "dag": SimpleNamespace(params=PARAMS), "params": PARAMS}
    for kills, said in ((iter([7, 7]), "it was killed"), (iter([7, 8]), "memory ran out with preset standard")):
        monkeypatch.setattr(module, "out_of_memory_kills", lambda kills=kills: next(kills))
        operator = module.LocalStageOperator(task_id="reconstruct", stage=STAGE)
        operator.arguments = []
        with pytest.raises(AirflowException, match=said):
            operator.execute(context)

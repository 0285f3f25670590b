"""The DAG file: it loads, has one task a stage in order, and imports nothing heavy."""

import os
import runpy
import subprocess
import sys
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from operators.settings import Runner, RunnerSettings
from scan2twin.errors import ConfigError
from scan2twin.stages import STAGES

ROOT = Path(__file__).parents[2]
KUBERNETES = {"SCAN2TWIN_RUNNER": "kubernetes", "SCAN2TWIN_STORE": "s3+http://minio:9000"}


def load_dags() -> Any:
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(ROOT / "dags")


@pytest.mark.parametrize("environment", [{}, KUBERNETES], ids=["local", "kubernetes"])
def test_every_dag_loads_with_one_task_a_stage_in_order(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    loaded = load_dags()
    assert loaded.import_errors == {}
    dag = loaded.dags["reconstruct_capture"]
    names = [stage.name for stage in STAGES]
    names.insert(names.index("mask") + 1, "review_masks")
    assert [task.task_id for task in dag.topological_sort()] == names
    for earlier, later in pairwise(names):
        assert dag.get_task(later).upstream_task_ids == {earlier}
    assert set(loaded.dags) == {"reconstruct_capture", "nightly_reconstruction", "incoming", "housekeeping"}


@pytest.mark.parametrize(
    ("overrides", "accepted"),
    [
        ({}, True),
        ({"reconstruct": {"iterations": 5}}, True),
        ({"reconstruct": {"iterations": 0}}, False),
        ({"reconstruct": {"iteration": 5}}, False),
        ({"reconstrct": {}}, False),
        ([], False),
    ],
)
def test_the_form_refuses_overrides_that_no_stage_would_take(overrides: Any, accepted: bool) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    param = load_dags().dags["reconstruct_capture"].params.get_param("overrides")
    if accepted:
        assert param.resolve(overrides) == overrides
    else:
        with pytest.raises(ParamValidationError):
            param.resolve(overrides)


@pytest.mark.parametrize("capture_id", ["ab", "Skull", "../skull", "skull --preset=high"])
def test_the_form_refuses_what_is_not_a_capture_id(capture_id: str) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    param = load_dags().dags["reconstruct_capture"].params.get_param("capture_id")
    with pytest.raises(ParamValidationError):
        param.resolve(capture_id)


@pytest.mark.parametrize("environment", [{}, KUBERNETES], ids=["local", "kubernetes"])
def test_the_dag_files_import_none_of_what_the_stages_import(environment: dict[str, str]) -> None:
    script = (
        "import pathlib, runpy, sys\n"
        f"for path in pathlib.Path({str(ROOT / 'dags')!r}).glob('*.py'):\n"
        "    runpy.run_path(str(path))\n"
        "print(sorted({'torch', 'numba', 'cv2', 'scipy', 'onnxruntime', 'trimesh', 'minio'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, check=True,
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_deadline_is_set_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not load_dags().dags["reconstruct_capture"].deadline
    monkeypatch.setenv("SCAN2TWIN_DEADLINE_H", "1.5")
    (deadline,) = load_dags().dags["reconstruct_capture"].deadline
    assert deadline.interval.total_seconds() == 5400


def test_settings_come_from_the_environment() -> None:
    settings = RunnerSettings.from_environment(KUBERNETES | {"SCAN2TWIN_GPU": "0", "SCAN2TWIN_RETRIES": ""})
    assert settings.runner is Runner.KUBERNETES
    assert settings.store == "s3+http://minio:9000"
    assert not settings.gpu
    assert settings.retries == RunnerSettings().retries


def test_every_wrong_setting_is_named() -> None:
    with pytest.raises(ConfigError) as refusal:
        RunnerSettings.from_environment(
            {"SCAN2TWIN_RUNNER": "docker", "SCAN2TWIN_RETRIES": "-1", "SCAN2TWIN_GPU": "perhaps"}
        )
    message = str(refusal.value)
    assert all(name in message for name in ("SCAN2TWIN_RUNNER", "SCAN2TWIN_RETRIES", "SCAN2TWIN_GPU", "'docker'"))


def test_the_kubernetes_runner_refuses_to_guess_the_store() -> None:
    with pytest.raises(ConfigError, match="SCAN2TWIN_STORE"):
        RunnerSettings.from_environment({"SCAN2TWIN_RUNNER": "kubernetes"})


@pytest.mark.parametrize(
    ("start", "end", "days"),
    [
        ("2026-11-22T02:00", "2026-11-23T02:00", ("2026-11-22", "2026-11-22")),  # a night
        ("2026-11-16T00:00", "2026-11-23T00:00", ("2026-11-16", "2026-11-22")),  # a weekly schedule
        (None, None, ("2026-11-22", "2026-11-22")),  # started by hand
    ],
)
def test_a_night_looks_at_the_days_that_are_over(start: str | None, end: str | None, days: tuple[str, str]) -> None:
    days_of = runpy.run_path(str(ROOT / "dags/nightly_reconstruction.py"))["days_of"]
    run = SimpleNamespace(
        data_interval_start=start and datetime.fromisoformat(start),
        data_interval_end=end and datetime.fromisoformat(end),
        run_after=datetime(2026, 11, 23, 14, tzinfo=UTC),
    )
    assert tuple(map(str, days_of(run))) == days

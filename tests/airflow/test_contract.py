"""What Airflow and a stage say to each other."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.contract import read_result, refuse_unknown_conf, stage_failure
from operators.local import LocalStageOperator, level_of, stage_environment
from scan2twin.logs import FORMAT, ContextFilter
from scan2twin.stages import STAGES

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def rendered(overrides: Any) -> list[str]:
    """Render the arguments as Airflow does for a task."""
    context: Any = {
        "params": {"capture_id": "skull", "preset": "draft", "overrides": overrides, "allow_smaller_preset": False},
        "run_id": "run",
    }
    operator = LocalStageOperator(task_id="validate", stage=STAGES[0])
    arguments: list[str] = operator.render_template(operator.arguments, context)
    return arguments


@settings(max_examples=200, deadline=None)
@given(json_values)
def test_overrides_reach_the_stage_unchanged_whatever_is_in_them(overrides: Any) -> None:
    arguments = rendered(overrides)
    assert len(arguments) == 8
    assert arguments[:2] == ["stage", "validate"]
    assert json.loads(arguments[4].removeprefix("--config=")) == overrides


@pytest.mark.parametrize("exit_code", [1, 3, 137, -9])
def test_failures_that_a_retry_may_help_are_tried_again(exit_code: int) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    failure = stage_failure("mask", exit_code)
    assert not isinstance(failure, AirflowFailException)
    assert str(exit_code) in str(failure)


@pytest.mark.parametrize("exit_code", [2, 4])
def test_what_would_end_in_the_same_way_is_never_tried_again(exit_code: int) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    assert isinstance(stage_failure("validate", exit_code), AirflowFailException)


def test_unknown_parameters_are_refused_by_name() -> None:
    from airflow.sdk.exceptions import AirflowFailException

    refuse_unknown_conf(None, ["preset"])
    refuse_unknown_conf({"preset": "draft"}, ["preset"])
    with pytest.raises(AirflowFailException, match="captureid"):
        refuse_unknown_conf({"captureid": "skull"}, ["capture_id", "preset"])


def test_only_the_manifest_and_the_fingerprint_go_to_airflow(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"manifest": "s3://m", "fingerprint": "f", "skipped": True}))
    assert read_result(result) == {"manifest": "s3://m", "fingerprint": "f"}


def test_a_stage_sees_the_store_but_not_airflows_secrets() -> None:
    seen = stage_environment(
        {"AIRFLOW__CORE__FERNET_KEY": "k", "_AIRFLOW_X": "y", "AWS_ACCESS_KEY_ID": "a", "PATH": "p"}
    )
    assert seen == {"AWS_ACCESS_KEY_ID": "a", "PATH": "p"}


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING, logging.ERROR])
def test_a_line_of_a_stages_log_keeps_its_level(level: int) -> None:
    record = logging.makeLogRecord({"levelno": level, "levelname": logging.getLevelName(level), "msg": "INFO of it"})
    ContextFilter().filter(record)
    assert level_of(logging.Formatter(FORMAT).format(record)) == level


def test_other_output_of_a_stage_is_information_but_its_last_word_is_an_error() -> None:
    assert level_of("Traceback (most recent call last):") == logging.INFO
    assert level_of("error: capture.json: no such file") == logging.ERROR

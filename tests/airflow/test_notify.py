"""The webhook is told of runs that fail or take too long, and one that fails makes nothing worse."""

import asyncio
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from webhook import Webhook

from operators.notify import WEBHOOK_VARIABLE, on_deadline, on_failure

RUN = SimpleNamespace(dag_id="reconstruct_capture", run_id="skull-1", conf={"capture_id": "skull"})
MINIMAL = {"dag": SimpleNamespace(dag_id=RUN.dag_id), "run_id": RUN.run_id, "reason": "timed_out"}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What a webhook on loopback was told."""
    with Webhook() as hook:
        monkeypatch.setenv(WEBHOOK_VARIABLE, hook.url)
        yield hook.told


def test_a_failed_run_is_told_with_its_parameters(told: list[Any]) -> None:
    on_failure(MINIMAL | {"dag_run": RUN})
    assert told == [
        {"event": "failed", "dag": "reconstruct_capture", "run": "skull-1", "conf": {"capture_id": "skull"}}
    ]


def test_a_run_that_failed_without_a_task_is_told(told: list[Any]) -> None:
    on_failure(MINIMAL)
    assert told == [{"event": "failed", "dag": "reconstruct_capture", "run": "skull-1", "conf": {}}]


def test_a_late_run_is_told(told: list[Any]) -> None:
    context = {"dag_run": {"dag_id": "reconstruct_capture", "dag_run_id": "skull-1"}}
    asyncio.run(on_deadline(context=context))
    assert told == [{"event": "late", "dag": "reconstruct_capture", "run": "skull-1"}]


def test_without_a_webhook_nothing_happens() -> None:
    on_failure(MINIMAL)


def test_a_webhook_that_fails_is_only_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(WEBHOOK_VARIABLE, "http://127.0.0.1:1/hook")
    with caplog.at_level(logging.WARNING):
        on_failure(MINIMAL)
    assert "cannot be told" in caplog.text

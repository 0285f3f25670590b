"""The webhook is told of runs that fail or take too long, and one that fails makes nothing worse."""

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from operators.notify import WEBHOOK_VARIABLE, on_deadline, on_failure

RUN = SimpleNamespace(dag_id="reconstruct_capture", run_id="skull-1", conf={"capture_id": "skull"})


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What a webhook on loopback was told."""
    messages: list[Any] = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Webhook)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv(WEBHOOK_VARIABLE, f"http://127.0.0.1:{server.server_address[1]}/hook")
    yield messages
    server.shutdown()
    server.server_close()


def test_a_failed_run_is_told_with_its_parameters(told: list[Any]) -> None:
    on_failure({"dag_run": RUN})
    assert told == [
        {"event": "failed", "dag": "reconstruct_capture", "run": "skull-1", "conf": {"capture_id": "skull"}}
    ]


def test_a_late_run_is_told(told: list[Any]) -> None:
    context = {"dag_run": {"dag_id": "reconstruct_capture", "dag_run_id": "skull-1"}}
    asyncio.run(on_deadline(context=context))
    assert told == [{"event": "late", "dag": "reconstruct_capture", "run": "skull-1"}]


def test_without_a_webhook_nothing_happens() -> None:
    on_failure({"dag_run": RUN})


def test_a_webhook_that_fails_is_only_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(WEBHOOK_VARIABLE, "http://127.0.0.1:1/hook")
    with caplog.at_level(logging.WARNING):
        on_failure({"dag_run": RUN})
    assert "cannot be told" in caplog.text

"""The ingest API against its own OpenAPI document, with requests that nobody thought of."""

from collections.abc import Callable
from pathlib import Path

import pytest
import schemathesis
from hypothesis import given, settings
from ingest_server import Server, announcement, read_bundle


@pytest.mark.parametrize("kind", ["captures", "pairings"])
def test_answers_are_what_the_document_says(
    server: Server, monkeypatch: pytest.MonkeyPatch, make_capture: Callable[..., Path], kind: str
) -> None:
    monkeypatch.setattr("plugins.limits.RateLimiter.wait_s", lambda *_: 0.0)
    bundle, token = read_bundle(make_capture(frames=3)), server.pair()
    server.call("POST", "/captures", announcement(bundle), token=token)
    authorization = f"Bearer {token}" if kind == "captures" else "Basic YW5uOnJpZ2h0"
    document = schemathesis.openapi.from_dict(server.app.openapi())
    operations = [found.ok() for found in document.include(path_regex=kind).get_all_operations()]
    assert len(operations) >= 3
    # A schema cannot say that a day must be a recent one, or that no name may stand twice.
    positive_data_acceptance = schemathesis.checks.CHECKS.get_one("positive_data_acceptance")
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=15, deadline=None)
        def keeps_its_word(case: schemathesis.Case) -> None:
            case.call_and_validate(
                base_url=server.url,
                headers={"Authorization": authorization},
                excluded_checks=[positive_data_acceptance],
            )

        keeps_its_word()

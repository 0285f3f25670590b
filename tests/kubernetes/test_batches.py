"""Nights, backfills, incoming captures and housekeeping under a real Airflow; the captures' own runs only wait."""

import json
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import DAG_ID, LIMIT_S, Studio

from scan2twin.runner import find_capture, import_capture

pytestmark = pytest.mark.timeout(2 * LIMIT_S)
FIRST_DAY = date(2026, 3, 1)
# Days of the week after FIRST_DAY on which there were captures, and how many.
CAPTURES = {0: 1, 2: 2, 6: 1}


@pytest.fixture
def waiting(studio: Studio) -> Iterator[Studio]:
    """The studio, in which runs of captures are queued and do not begin."""
    studio.api.set_paused(DAG_ID, True)
    yield studio
    studio.api.fail_unfinished_runs(DAG_ID)
    studio.api.set_paused(DAG_ID, False)


@pytest.fixture
def week(waiting: Studio, make_capture: Callable[..., Path]) -> list[str]:
    """The ids of the runs that the week's captures should get."""
    folder = make_capture("week")
    path = folder / "capture.json"
    document = json.loads(path.read_text())
    wanted = []
    for day, count in CAPTURES.items():
        recorded = FIRST_DAY + timedelta(days=day)
        for number in range(count):
            capture_id = f"week-{day}-{number}"
            path.write_text(
                json.dumps(document | {"capture_id": capture_id, "recorded_at": f"{recorded}T10:00:00+00:00"})
            )
            import_capture(waiting.store, folder)
            wanted.append(f"{capture_id}__{recorded:%Y%m%d}")
    return wanted


def runs_of(studio: Studio, dag_id: str, prefix: str = "") -> dict[str, dict[str, Any]]:
    listed = studio.api.request("GET", f"/dags/{dag_id}/dagRuns?limit=100")["dag_runs"]
    return {run["dag_run_id"]: run for run in listed if run["dag_run_id"].startswith(prefix)}


def backfill(studio: Studio, days: int) -> dict[str, dict[str, Any]]:
    """Run the nights of the week's first days through Airflow's own backfill; return all its runs when they ended."""
    until = FIRST_DAY + timedelta(days=days)  # the night after the last day
    wanted = {
        "dag_id": "nightly_reconstruction", "from_date": f"{FIRST_DAY}T00:00:00Z", "to_date": f"{until}T00:00:00Z",
        "reprocess_behavior": "completed",
    }  # fmt: skip
    # Airflow refuses to create a backfill in SQLite while its scheduler writes; Postgres has no such limit.
    with studio.without_scheduler():
        created = studio.api.request("POST", "/backfills", wanted)
    studio.wait_for(
        "the backfill", lambda: studio.api.request("GET", f"/backfills/{created['id']}")["completed_at"]
    )  # fmt: skip
    return runs_of(studio, "nightly_reconstruction", "backfill")


def test_a_backfill_of_seven_days_starts_each_capture_once(waiting: Studio, week: list[str]) -> None:
    waiting.api.set_paused("nightly_reconstruction", False)
    nights = backfill(waiting, 7)
    assert len(nights) == 7
    assert {night["state"] for night in nights.values()} == {"success"}
    started = runs_of(waiting, DAG_ID, "week-")
    assert sorted(started) == week
    assert started["week-2-1__20260303"]["conf"] == {"capture_id": "week-2-1", "preset": "standard"}
    # Again: everything is looked at, nothing is started twice.
    backfill(waiting, 3)
    assert sorted(runs_of(waiting, DAG_ID, "week-")) == week
    waiting.api.set_paused("nightly_reconstruction", True)


def test_an_event_of_an_incoming_capture_starts_one_run(waiting: Studio, week: list[str]) -> None:
    (asset,) = waiting.api.request("GET", "/assets?name_pattern=scan2twin-capture")["assets"]
    event = {"asset_id": asset["id"], "extra": {"capture_id": "week-0-0"}}
    for times in (1, 2):
        waiting.api.request("POST", "/assets/events", event)
        waiting.wait_for(
            "the run of the event",
            lambda times=times: [
                run["state"] for run in runs_of(waiting, "incoming").values()
            ] == ["success"] * times,
        )  # fmt: skip
    content = find_capture(waiting.store, "week-0-0").fingerprint[:12]
    assert f"week-0-0__{content}" in runs_of(waiting, DAG_ID)
    waiting.api.request("POST", "/assets/events", {"asset_id": asset["id"], "extra": {"capture_id": "nobody"}})
    waiting.wait_for(
        "the refusal", lambda: "failed" in [run["state"] for run in runs_of(waiting, "incoming").values()]
    )  # fmt: skip


def test_housekeeping_by_hand_only_lists(waiting: Studio, week: list[str]) -> None:
    waiting.store.put_bytes("artifacts/week-0-0/mask/f/attempt/left.bin", b"left")
    waiting.api.set_paused("housekeeping", False)
    waiting.api.trigger("housekeeping", "by-hand", {})
    waiting.wait_for("housekeeping", lambda: waiting.api.run_state("housekeeping", "by-hand") == "success")
    assert waiting.store.exists("artifacts/week-0-0/mask/f/attempt/left.bin")
    waiting.api.set_paused("housekeeping", True)

"""Nights, backfills, incoming captures, reviews, housekeeping and the webhook, all under the real Airflow.

The captures' own runs are pods on the API double; where only their start matters, `reconstruct_capture` is paused.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from cluster import Fault
from studio import DAG_ID, LIMIT_S, Studio

from scan2twin.runner import import_capture
from scan2twin.store.captures import CaptureLocation, find_capture
from scan2twin.store.models import latest_model
from scan2twin.store.transfer import parallel

pytestmark = pytest.mark.timeout(2 * LIMIT_S)
NIGHTLY, INCOMING, HOUSEKEEPING = "nightly_reconstruction", "incoming", "housekeeping"
MANY = 1_100  # more than the 1,024 tasks that Airflow maps; `scan2twin benchmark night` chooses from 5,000
HESITATION_S = 5.0  # before a question is answered
MAX_MEMORY_MB = 300  # of the task that selects them
MakeCapture = Callable[..., Path]


@pytest.fixture
def put(studio: Studio, make_capture: MakeCapture) -> Callable[[str, str], None]:
    """Put a small capture into the store, recorded at noon of a day."""

    def do(capture_id: str, day: str) -> None:
        folder = make_capture(capture_id)
        path = folder / "capture.json"
        changed = {"capture_id": capture_id, "recorded_at": f"{day}T12:00:00+00:00"}
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
        import_capture(studio.store, folder)

    return do


@pytest.fixture
def only_queued(studio: Studio) -> Iterator[None]:
    """Let the captures' runs be made and not begin."""
    pause(studio, DAG_ID, True)
    yield
    pause(studio, DAG_ID, False)


def pause(studio: Studio, dag_id: str, paused: bool) -> None:
    studio.request("PATCH", f"/dags/{dag_id}?update_mask=is_paused", {"is_paused": paused})


def run_by_hand(studio: Studio, dag_id: str, run_id: str, logical_date: datetime | None = None, **conf: Any) -> str:
    """Start a run, wait for its end and return its state."""
    pause(studio, dag_id, False)
    body = {"dag_run_id": run_id, "logical_date": logical_date and logical_date.isoformat(), "conf": conf}
    studio.request("POST", f"/dags/{dag_id}/dagRuns", body)
    return studio.finish(run_id, dag_id)


def backfill_by_command(studio: Studio, first: str, last: str) -> None:
    """Make a backfill as a shell would and wait for its end."""
    command = [sys.executable, "-m", "airflow", "backfill", "create", "--dag-id", NIGHTLY]
    done = subprocess.run(
        [*command, "--from-date", first, "--to-date", last],
        env=studio.airflow.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    studio.wait_for("the end of the backfill", lambda: not open_backfills(studio))


def open_backfills(studio: Studio) -> list[Any]:
    found = studio.request("GET", f"/backfills?dag_id={NIGHTLY}")["backfills"]
    return [item for item in found if not item["completed_at"]]


def nights(studio: Studio, month: str) -> dict[str, str]:
    """Return the state of each night's run by the first day of its interval."""
    found = studio.request("GET", f"/dags/{NIGHTLY}/dagRuns?limit=100")["dag_runs"]
    days = {run["data_interval_start"][:10]: run["state"] for run in found if run["data_interval_start"]}
    return {day: state for day, state in days.items() if day.startswith(month)}


def test_a_backfill_of_seven_days_makes_the_models_that_are_missing(studio: Studio, put: Any) -> None:
    if studio.airflow.home.sqlite:
        pytest.skip("PostgreSQL is not installed; in SQLite, Airflow's backfill fails where its scheduler writes too")
    week = {"from_date": "2026-03-01T00:00:00Z", "to_date": "2026-03-08T00:00:00Z", "dag_id": NIGHTLY}
    for capture_id, day in (("week-a", "2026-03-02"), ("week-b", "2026-03-02"), ("week-c", "2026-03-05")):
        put(capture_id, day)
    planned = studio.request("POST", "/backfills/dry_run", week | {"max_active_runs": 2})
    assert [item["logical_date"][:10] for item in planned["backfills"]] == [f"2026-03-0{day}" for day in range(1, 8)]
    assert nights(studio, "2026-03") == {}

    pause(studio, NIGHTLY, False)
    backfill_by_command(studio, "2026-03-01", "2026-03-08")
    assert nights(studio, "2026-03") == {f"2026-03-0{day}": "success" for day in range(1, 8)}
    expected = {"week-a__20260302", "week-b__20260302", "week-c__20260305"}
    assert set(studio.runs("week-")) == expected
    for run_id in expected:
        assert studio.finish(run_id) == "success"
        assert latest_model(studio.store, run_id.split("__")[0]) is not None

    # The same week again: what has its model is left out, what came in later is made.
    put("week-d", "2026-03-05")
    studio.request("POST", "/backfills", week | {"reprocess_behavior": "completed", "max_active_runs": 2})
    studio.wait_for("the end of the backfill", lambda: not open_backfills(studio))
    assert set(studio.runs("week-")) == expected | {"week-d__20260305"}
    assert studio.finish("week-d__20260305") == "success"


def test_a_capture_that_came_in_starts_one_run_however_often_it_is_told(
    studio: Studio, put: Any, only_queued: None
) -> None:
    put("came-in", "2026-06-01")
    (asset,) = studio.request("GET", "/assets?name_pattern=scan2twin-capture")["assets"]
    run_id = f"came-in__{find_capture(studio.store, 'came-in').fingerprint[:12]}"
    for told in (1, 2):
        event = {"asset_id": asset["id"], "extra": {"capture_id": "came-in"}}
        studio.request("POST", "/assets/events", event)
        ended = studio.wait_for("the event's run", lambda told=told: ended_runs(studio, INCOMING, told))
        assert set(ended) == {"success"}
    assert studio.runs("came-in") == {run_id: {"capture_id": "came-in"}}

    studio.request("POST", "/assets/events", {"asset_id": asset["id"], "extra": {"capture_id": "never-came"}})
    assert "failed" in studio.wait_for("the event's run", lambda: ended_runs(studio, INCOMING, 3))


def ended_runs(studio: Studio, dag_id: str, count: int) -> list[str] | None:
    """Return the states of the runs of a DAG once there are so many and all have ended."""
    states = [run["state"] for run in studio.request("GET", f"/dags/{dag_id}/dagRuns?limit=100")["dag_runs"]]
    return states if len(states) == count and set(states) <= {"success", "failed"} else None


@pytest.mark.parametrize(("answer", "published"), [("Approve", True), ("Reject", False)])
def test_a_person_decides_on_the_masks(studio: Studio, put: Any, answer: str, published: bool) -> None:
    capture_id = f"asked-{answer.lower()}"
    put(capture_id, "2026-06-02")
    studio.start(capture_id, capture_id, review=True)
    task = f"/dags/{DAG_ID}/dagRuns/{capture_id}/taskInstances/review_masks/-1/hitlDetails"
    asking = f"/dags/{DAG_ID}/dagRuns/{capture_id}/hitlDetails"

    def open_questions() -> list[Any]:
        # Airflow loses an answer that comes before the task, still running, has begun to wait for it.
        found = studio.request("GET", asking)["hitl_details"]
        return [item for item in found if item["task_instance"]["state"] != "running"]

    (asked,) = studio.wait_for("the question", open_questions)
    assert asked["subject"] == f"Masks of {capture_id}"
    link = re.search(r"\((http\S+contact_sheet\.jpg\?\S+)\)", asked["body"])
    assert link
    assert "X-Amz-Signature" in link[1]
    # On a busy machine Airflow takes the end of the process that asked for the end of the task that goes on.
    time.sleep(HESITATION_S)
    studio.request("PATCH", task, {"chosen_options": [answer], "params_input": {}})
    assert studio.finish(capture_id) == "success"
    assert (latest_model(studio.store, capture_id) is not None) is published
    states = {item["task_id"]: item["state"] for item in studio.api.task_instances(DAG_ID, capture_id)}
    assert states["publish"] == ("success" if published else "skipped")


def test_housekeeping_lists_first_and_deletes_when_told(studio: Studio, put: Any) -> None:
    put("tidied", "2026-06-03")
    studio.start("tidied", "tidied")
    assert studio.finish("tidied") == "success"
    leftover = "artifacts/tidied/mask/0000/attempt/left.bin"
    studio.store.put_bytes(leftover, b"x" * 1000)
    kept = latest_model(studio.store, "tidied")

    assert run_by_hand(studio, HOUSEKEEPING, "young") == "success"
    assert leftover not in studio.log("young", "tidy", 1, HOUSEKEEPING)
    studio.proxy.years_older = 1  # from here on the store says that all it has is a year old
    try:
        assert run_by_hand(studio, HOUSEKEEPING, "listed") == "success"
        assert "artifacts/tidied/mask/0000/attempt: an attempt that nobody took up again" in studio.log(
            "listed", "tidy", 1, HOUSEKEEPING
        )
        assert studio.store.exists(leftover)
        assert run_by_hand(studio, HOUSEKEEPING, "leftovers", dry_run=False) == "success"
        assert not studio.store.exists(leftover)
        assert list(studio.store.list_objects("artifacts/tidied"))
        assert run_by_hand(studio, HOUSEKEEPING, "old", dry_run=False, keep_days=30) == "success"
    finally:
        studio.proxy.years_older = 0
    assert list(studio.store.list_objects("artifacts/tidied")) == []
    assert latest_model(studio.store, "tidied") == kept
    assert find_capture(studio.store, "tidied")


def test_the_webhook_hears_of_runs_that_fail_and_of_runs_that_are_late(studio: Studio, put: Any) -> None:
    put("slow", "2026-06-04")
    studio.break_pod(Fault.KILLED, "slow", "validate", at=b"never said")  # the stage waits for that
    studio.start("slow", "slow")
    late = {"event": "late", "dag": DAG_ID, "run": "slow"}
    studio.wait_for("the deadline's message", lambda: late in studio.told)
    studio.request("PATCH", f"/dags/{DAG_ID}/dagRuns/slow?update_mask=state", {"state": "failed"})

    studio.start("refused", "no-such-capture")
    assert studio.finish("refused") == "failed"
    conf = {"capture_id": "no-such-capture", "preset": "standard"}
    failed = {"event": "failed", "dag": DAG_ID, "run": "refused", "conf": conf}
    studio.wait_for("the failure's message", lambda: failed in studio.told)


def test_a_night_of_thousands_starts_each_once(studio: Studio) -> None:
    pause(studio, DAG_ID, True)  # for good: this is the last test, and its runs stay queued
    day = date(2026, 4, 1)
    folders = [CaptureLocation(f"night-{number:05d}", day).folder for number in range(MANY)]
    parallel(lambda folder: studio.store.put_bytes(f"{folder}/capture.json", b"{}"), folders)
    night = datetime(2026, 4, 2, 3, tzinfo=UTC)
    assert run_by_hand(studio, NIGHTLY, "thousands", night) == "success"
    log = studio.log("thousands", "select", 1, NIGHTLY)
    assert f"{MANY} captures recorded from {day} to {day} have no model yet" in log
    measured = re.search(r"selected in [\d.]+ s, (\d+) MB at most", log)
    assert measured, log
    print(measured[0])
    assert int(measured[1]) < MAX_MEMORY_MB
    started = studio.request("GET", f"/dags/{DAG_ID}/dagRuns?limit=1&run_id_pattern=night-%25")
    assert started["total_entries"] == MANY

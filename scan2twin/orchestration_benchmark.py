"""What the orchestration itself costs: Airflow's time around the stages, and the choice of a night's captures."""

import os
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from scan2twin.airflow_home import AirflowHome
from scan2twin.airflow_server import LocalAirflow
from scan2twin.batch import select_captures
from scan2twin.capture.reader import CAPTURE_FILE
from scan2twin.config import PipelineConfig, resolve_config
from scan2twin.errors import ReconstructionError
from scan2twin.memory import PeakMemory
from scan2twin.runner import fingerprints
from scan2twin.s3server import EmbeddedS3
from scan2twin.stages import STAGES
from scan2twin.store import STORE_VARIABLE, ArtifactStore, open_store
from scan2twin.store.captures import CaptureLocation, StoredCapture, import_capture
from scan2twin.store.models import MODELS, PublishedModel
from scan2twin.store.transfer import parallel

DAG_ID = "reconstruct_capture"
POLL_S = 0.5
DAY = date(2026, 4, 1)
# The least work that still gives a model: what is measured happens around it.
LITTLE_WORK: Mapping[str, Mapping[str, Any]] = {
    "condition": {"long_side": 256},
    "refine_poses": {"enabled": False},
    "mask": {"resolution": 96, "refine": False},
    "reconstruct": {"iterations": 12, "resolution": 96, "grid": 16},
    "export": {"texture_size": 128, "refine_iterations": 2, "turntable_frames": 2, "turntable_size": 64},
}


def benchmark_airflow(capture: Path) -> dict[str, float]:
    """Take `capture` through a fresh local Airflow twice; return seconds of the second run, which finds all done.

    `trigger_to_first_s` is from the request to the start of the first task, `between_tasks_s` and
    `longest_between_tasks_s` from the end of a task to the start of the next, `rerun_s` the whole run.

    Raises:
        InputError: the capture is refused.
        ReconstructionError: a run fails.

    """
    with tempfile.TemporaryDirectory(prefix="scan2twin-benchmark-") as folder, EmbeddedS3() as s3:
        os.environ.update({STORE_VARIABLE: s3.uri, **s3.environment})
        capture_id = import_capture(open_store(), capture)
        home = AirflowHome(Path(folder))
        with home.locked(), LocalAirflow(home, {}) as airflow:
            airflow.wait_until_ready(DAG_ID)
            _run(airflow, capture_id, "first")
            asked = datetime.now(UTC)
            _run(airflow, capture_id, "again")
            tasks = [
                (datetime.fromisoformat(task["start_date"]), datetime.fromisoformat(task["end_date"]))
                for task in airflow.api.task_instances(DAG_ID, "again")
            ]
    tasks.sort()
    gaps = [(after[0] - before[1]).total_seconds() for before, after in pairwise(tasks)]
    return {
        "trigger_to_first_s": (tasks[0][0] - asked).total_seconds(),
        "between_tasks_s": sum(gaps) / len(gaps),
        "longest_between_tasks_s": max(gaps),
        "rerun_s": (tasks[-1][1] - asked).total_seconds(),
    }


def _run(airflow: LocalAirflow, capture_id: str, run_id: str) -> None:
    airflow.api.trigger(DAG_ID, run_id, {"capture_id": capture_id, "preset": "draft", "overrides": LITTLE_WORK})
    while (state := airflow.api.run_state(DAG_ID, run_id)) != "success":
        if state == "failed":
            raise ReconstructionError(f"benchmark: the run {run_id!r} failed; its logs were in {airflow.home.logs}")
        airflow.check()
        time.sleep(POLL_S)


def benchmark_night(captures: int) -> dict[str, float]:
    """Choose from a night of so many captures as nightly_reconstruction does; the store is S3.

    `select_s` where none has a model, `select_again_s` where all have, so that each is looked at and none is `left`.
    `memory_mb` (10⁶ bytes) is the most that this whole process took.
    """
    with EmbeddedS3() as s3:
        os.environ.update(s3.environment)
        store, config = open_store(s3.uri), resolve_config("standard", {})
        night = [StoredCapture(CaptureLocation(f"night-{number:06d}", DAY), b"{}") for number in range(captures)]
        parallel(lambda one: store.put_bytes(f"{one.location.folder}/{CAPTURE_FILE}", one.document), night)
        with PeakMemory(children=False) as memory:
            started, used = time.monotonic(), time.process_time()
            found = select_captures(store, DAY, DAY, config)
            select_s, select_cpu_s = time.monotonic() - started, time.process_time() - used
            parallel(lambda one: _point_to_model(store, one, config), night)
            started = time.monotonic()
            left = select_captures(store, DAY, DAY, config)
        return {
            "captures": len(found),
            "select_s": select_s,
            "select_cpu_s": select_cpu_s,
            "left": len(left),
            "select_again_s": time.monotonic() - started,
            "memory_mb": memory.peak_bytes / 1e6,
        }


def _point_to_model(store: ArtifactStore, capture: StoredCapture, config: PipelineConfig) -> None:
    """Say that `capture` has its model; of the model itself there is nothing."""
    known = fingerprints(capture, config)
    store.put_bytes(
        f"{MODELS}/{capture.location.capture_id}/latest.json",
        PublishedModel(
            capture_id=capture.location.capture_id, fingerprint=known[STAGES[-1].name], manifest="", files="",
            published_at=datetime.now(UTC),
        ).model_dump_json().encode(),
    )  # fmt: skip

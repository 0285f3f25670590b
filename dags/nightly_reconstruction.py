"""Starts `reconstruct_capture` for every capture recorded on the days of its interval.

The night's run looks at the captures of the day before, by the UTC day of their recording, and leaves out those whose
published model is already of this content and this preset. Each capture's run has an id that follows from the capture
and the day, so running an interval again starts only what is new. Archived days are made up for by Airflow's own
backfill.
"""

from datetime import UTC, date, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, CronDataIntervalTimetable, Param, task

from operators.settings import RunnerSettings
from operators.start_runs import start_runs
from scan2twin.config import Preset

settings = RunnerSettings.from_environment()


def days_of(dag_run: Any) -> tuple[date, date]:
    """Return the first and the last day of a run: its interval's, or yesterday for a run that was started by hand."""
    end = dag_run.data_interval_end or dag_run.run_after
    start = dag_run.data_interval_start or end - timedelta(days=1)
    return start.date(), max(start.date(), end.date() - timedelta(days=1))


with DAG(
    dag_id="nightly_reconstruction",
    description="A model of every capture of the day",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable(settings.nightly_cron, timezone="UTC"),
    start_date=datetime(2020, 1, 1, tzinfo=UTC),  # the earliest day that a backfill may ask for
    catchup=False,
    is_paused_upon_creation=True,  # unpausing it runs the last interval at once
    max_active_runs=2,  # of a backfill; the captures' own runs are bounded by reconstruct_capture
    tags=["scan2twin"],
    params={
        "preset": Param(
            str(Preset.STANDARD), type="string", enum=[str(preset) for preset in Preset], title="Preset",
            description="How much time each model may take",
        ),
    },
    default_args={"retries": settings.retries, "retry_delay": timedelta(seconds=settings.retry_delay_s)},
):  # fmt: skip

    @task
    def select(dag_run: Any = None, params: Any = None) -> list[list[str]]:
        """Return the captures to run, in chunks that are one task's work each."""
        # Imported where they are needed: they bring the store's client along.
        import time

        from scan2twin.batch import chunks, select_captures
        from scan2twin.config import resolve_config
        from scan2twin.memory import PeakMemory
        from scan2twin.store import open_store

        first, last = days_of(dag_run)
        started = time.monotonic()
        with PeakMemory(children=False) as memory:
            found = select_captures(open_store(), first, last, resolve_config(params["preset"], {}))
        print(f"{len(found)} captures recorded from {first} to {last} have no model yet")
        print(f"selected in {time.monotonic() - started:.1f} s, {memory.peak_bytes / 1e6:.0f} MB at most")
        return list(chunks(found))

    @task(map_index_template="{{ task.op_kwargs['capture_ids'] | length }} captures")
    def start(capture_ids: list[str], dag_run: Any = None, params: Any = None) -> list[str]:
        """Start a run for each capture of a chunk."""
        day = f"{days_of(dag_run)[0]:%Y%m%d}"
        return start_runs(capture_ids, lambda capture_id: f"{capture_id}__{day}", {"preset": params["preset"]})

    start.expand(capture_ids=select())

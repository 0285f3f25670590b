"""Deletes from the store what killed work left behind and, if that is wished, intermediate outputs that are old.

Captures and published models are never touched. Started by hand it only lists what would go, unless `dry_run` is
switched off. On its schedule it deletes: unpause it when a list has been looked at.
"""

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import DAG, Param, task

from operators.settings import RunnerSettings

settings = RunnerSettings.from_environment()

with DAG(
    dag_id="housekeeping",
    description="Leftovers and old intermediate outputs go",
    doc_md=__doc__,
    schedule=settings.housekeeping_cron,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    is_paused_upon_creation=True,
    max_active_runs=1,
    tags=["scan2twin"],
    params={
        "dry_run": Param(True, type="boolean", title="Dry run", description="Only list what would go"),
        "keep_days": Param(
            settings.keep_days, type=["null", "integer"], minimum=1, title="Keep days",
            description="Intermediate outputs older than this go too; empty keeps them",
        ),
    },
    default_args={"retries": settings.retries},
):  # fmt: skip

    @task
    def tidy(params: Any = None, dag_run: Any = None) -> dict[str, int]:
        """List what may go and, unless this is a dry run, delete it; return how much that was."""
        # Imported where they are needed: they bring the store's client along.
        import time

        from scan2twin.retention import find_removals, remove
        from scan2twin.store import open_store

        store = open_store()
        dry_run = params["dry_run"] and dag_run.run_type != "scheduled"
        objects = size = 0
        for removal in find_removals(store, time.time(), params["keep_days"]):
            print(f"{removal.folder}: {removal.reason}: {len(removal.keys)} objects, {removal.size / 1e6:.1f} MB")
            objects, size = objects + len(removal.keys), size + removal.size
            if not dry_run:
                remove(store, removal)
        print(f"{objects} objects, {size / 1e6:.1f} MB " + ("would go" if dry_run else "deleted"))
        return {"objects": objects, "bytes": size}

    tidy()

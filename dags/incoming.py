"""Starts `reconstruct_capture` when a capture has come in, told by an event of the asset `scan2twin-capture`.

Whoever commits a capture creates the event, with the capture's id in `extra`:

    POST /api/v2/assets/events   {"asset_id": …, "extra": {"capture_id": "skull"}}

The id of the run follows from the capture's content, so an event that is told twice starts one run.
"""

from typing import Any

from airflow.sdk import DAG, Asset, task

from operators.settings import RunnerSettings
from operators.start_runs import start_runs

settings = RunnerSettings.from_environment()
capture = Asset(name="scan2twin-capture", uri="scan2twin://capture")

with DAG(
    dag_id="incoming",
    description="A model of every capture as it comes in",
    doc_md=__doc__,
    schedule=[capture],
    catchup=False,
    is_paused_upon_creation=False,  # nothing happens without an event
    tags=["scan2twin"],
    default_args={"retries": settings.retries},
):

    @task
    def start(triggering_asset_events: Any = None) -> list[str]:
        """Start a run for each capture that an event names."""
        # Imported where they are needed: they bring the store's client along.
        from airflow.sdk.exceptions import AirflowFailException

        from scan2twin.errors import InputError
        from scan2twin.store import open_store
        from scan2twin.store.captures import find_capture

        store = open_store()
        named = [event.extra.get("capture_id") for event in triggering_asset_events[capture]]
        try:
            content = {name: find_capture(store, str(name)).fingerprint[:12] for name in named}
        except InputError as error:
            raise AirflowFailException(f"asset event: {error}") from None
        return start_runs(content, lambda capture_id: f"{capture_id}__{content[capture_id]}", {})

    start()

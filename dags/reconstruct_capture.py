"""Turns one capture into a published 3D model.

Give the capture's id and how much time the model may take. Each box is one stage; what a stage leaves is kept in the
artifact store under the fingerprint of all that went into it, so starting the same run again skips the finished work.

A stage that refuses its input (exit code 2) fails at once: correct the capture or the parameters. Other failures are
tried again by themselves.
"""

from datetime import timedelta

from airflow.sdk import DAG, AsyncCallback, DeadlineAlert, DeadlineReference, Param

from operators.notify import on_deadline, on_failure
from operators.settings import RunnerSettings
from operators.tasks import stage_tasks
from scan2twin.capture.models import CAPTURE_ID_PATTERN
from scan2twin.config import PipelineConfig, Preset

OVERRIDES_HELP = (
    'Single options that differ from the preset, by stage, such as {"reconstruct": {"iterations": 500}}; '
    "leave {} if in doubt"
)

settings = RunnerSettings.from_environment()
deadline = settings.deadline_h and DeadlineAlert(
    reference=DeadlineReference.DAGRUN_QUEUED_AT,
    interval=timedelta(hours=settings.deadline_h),
    callback=AsyncCallback(on_deadline),
)

with DAG(
    dag_id="reconstruct_capture",
    description="From a capture in the store to a published, textured 3D model",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    is_paused_upon_creation=False,  # without a schedule nothing starts by itself
    max_active_runs=settings.max_active_runs,
    on_failure_callback=on_failure,
    deadline=deadline,
    tags=["scan2twin"],
    params={
        "capture_id": Param(
            type="string",
            pattern=CAPTURE_ID_PATTERN,
            title="Capture",
            description="Id of a capture in the store; the command scan2twin captures lists them",
        ),
        "preset": Param(
            str(Preset.STANDARD),
            type="string",
            enum=[str(preset) for preset in Preset],
            title="Preset",
            description="How much time the model may take: draft looks rough and is quick, high is for a GPU",
        ),
        "allow_smaller_preset": Param(
            False,
            type="boolean",
            title="Allow a smaller preset",
            description="Where memory runs out, use the next smaller preset, once, instead of failing",
        ),
        "review": Param(
            False, type="boolean", title="Review the masks", description="Wait for a person's yes before reconstructing"
        ),
        # The schema refuses unknown options and wrong values when the run is started.
        "overrides": Param(
            {}, **PipelineConfig.model_json_schema() | {"title": "Overrides", "description": OVERRIDES_HELP}
        ),
    },
):
    stage_tasks(settings)

"""One Airflow task for each stage, by the runner of the settings."""

from datetime import timedelta
from typing import Any

from airflow.sdk import chain

from operators.settings import Runner, RunnerSettings
from scan2twin.stages import STAGES, Stage

REVIEW = "review_masks"
MAX_RETRY_DELAY = timedelta(minutes=10)


def stage_task(stage: Stage, settings: RunnerSettings) -> Any:
    """Return the Airflow task that runs `stage`; call it inside a DAG's `with` block."""
    options: dict[str, Any] = {
        "task_id": stage.name,
        "doc_md": f"**{stage.name}**: {stage.summary}. Reads {', '.join(stage.inputs)}.",
        "retries": settings.retries,
        "retry_delay": timedelta(seconds=settings.retry_delay_s),
        "retry_exponential_backoff": True,
        "max_retry_delay": MAX_RETRY_DELAY,
    }
    if settings.runner is Runner.KUBERNETES:
        # Its import takes seconds and needs the Kubernetes provider.
        from operators.kubernetes import KubernetesStageOperator

        return KubernetesStageOperator(stage=stage, settings=settings, **options)
    from operators.local import LocalStageOperator

    return LocalStageOperator(stage=stage, **options)


def review_task() -> Any:
    """Return the task in which a person may look at the masks."""
    from operators.review import MaskReviewOperator

    return MaskReviewOperator(task_id=REVIEW, doc_md="Waits for a person's yes where the run asks for a review.")


def stage_tasks(settings: RunnerSettings) -> list[Any]:
    """Return one task for each of STAGES, each after the one before, and the review between mask and reconstruct."""
    tasks = [stage_task(stage, settings) for stage in STAGES]
    after_mask = next(position for position, stage in enumerate(STAGES) if stage.name == "mask") + 1
    tasks.insert(after_mask, review_task())
    chain(*tasks)
    return tasks

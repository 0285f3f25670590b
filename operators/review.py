"""A person looks at the masks before the long stages begin, where the run asks for that."""

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator

QUESTION = "Do the masks show the object and nothing else?"
CONTACT_SHEET = "contact_sheet.jpg"  # of the mask stage's output
LINK_LIFETIME = timedelta(days=7)  # the longest that S3 signs a link for


class MaskReviewOperator(ApprovalOperator):  # type: ignore[misc]  # airflow is untyped here
    """Show the masks' contact sheet and wait for a yes or a no; succeeds at once if the run asks for no review.

    A no skips all that follows: the run then ends without a model, and the capture can be run again with other options.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(
            subject="Masks of {{ params.capture_id }}",
            body=QUESTION,
            **options,
        )

    def execute(self, context: Any) -> Any:
        """Ask, with a link to the contact sheet."""
        params = context["params"]
        if not params["review"]:
            return None
        self.body = f"{QUESTION}\n\n[Contact sheet]({contact_sheet(params)})"
        return super().execute(context)


def contact_sheet(params: Any) -> str:
    """Return a link to the contact sheet, signed where the store is S3; else its path.

    Raises StoreError if the store cannot be reached, MissingArtifactError if the capture or its masks are gone.
    """
    # Imported where they are needed: they bring the store's client along.
    from scan2twin.config import resolve_config
    from scan2twin.errors import MissingArtifactError
    from scan2twin.runner import committed_outputs
    from scan2twin.store import open_store
    from scan2twin.store.s3 import S3Store

    store, config = open_store(), resolve_config(params["preset"], params["overrides"])
    found = committed_outputs(store, params["capture_id"], config, ["mask"])["mask"]
    if found is None:
        raise MissingArtifactError(
            f"capture {params['capture_id']!r} has no masks of preset {params['preset']} any more; clear the task mask"
        )
    folder, manifest = found
    key = f"{folder}/{manifest.attempt}/{CONTACT_SHEET}"
    return store.presigned_url("GET", key, LINK_LIFETIME) if isinstance(store, S3Store) else f"{store.uri}/{key}"

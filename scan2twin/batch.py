"""Which captures of a night are still to be made into models."""

from collections.abc import Iterator, Sequence
from datetime import date

from scan2twin.config import PipelineConfig
from scan2twin.errors import NotFoundError
from scan2twin.runner import fingerprints
from scan2twin.stages import STAGES
from scan2twin.store import ArtifactStore
from scan2twin.store.captures import CaptureLocation, list_captures, read_capture_at
from scan2twin.store.models import MODELS, latest_model
from scan2twin.store.transfer import parallel

CHUNK = 500  # captures that one task starts; Airflow maps a task at most 1,024 times (core.max_map_length)


def select_captures(store: ArtifactStore, first: date, last: date, config: PipelineConfig) -> list[str]:
    """Return the ids of the captures of these days (UTC, both included) whose model has yet to be made, oldest first.

    A capture is left out if its latest model is of this content and this configuration. Captures are found by the
    prefixes of their days; capture.json is read only of those that have a model.
    """
    captures = list_captures(store, first, last)
    with_model = set(store.list_folders(MODELS))
    again = [location for location in captures if location.capture_id in with_model]
    done = parallel(lambda location: _is_published(store, location, config), again)
    published = {location.capture_id for location, yes in zip(again, done, strict=True) if yes}
    return [location.capture_id for location in captures if location.capture_id not in published]


def _is_published(store: ArtifactStore, location: CaptureLocation, config: PipelineConfig) -> bool:
    try:
        known = fingerprints(read_capture_at(store, location), config)
    except NotFoundError:  # deleted this moment
        return False
    model = latest_model(store, location.capture_id)
    return model is not None and model.fingerprint == known[STAGES[-1].name]


def chunks(capture_ids: Sequence[str], size: int = CHUNK) -> Iterator[list[str]]:
    """Split a list so that each part can be one task's work."""
    for start in range(0, len(capture_ids), size):
        yield list(capture_ids[start : start + size])

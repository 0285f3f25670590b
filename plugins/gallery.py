"""What the gallery knows of each capture: its name, who recorded it, how its run stands, and its model."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime

from PIL import Image
from pydantic import BaseModel, ValidationError

from plugins.uploads import Upload
from scan2twin.errors import NotFoundError
from scan2twin.store import ArtifactStore
from scan2twin.store.captures import CaptureIndex, find_capture, list_captures
from scan2twin.store.models import PublishedModel, latest_model
from scan2twin.store.transfer import parallel

MAX_SHOWN = 200  # the newest captures; the command `scan2twin captures` lists all
UPLOADS = "uploads/captures"
PREVIEW, REPORT_DATA = "preview.png", "report.json"
THUMBNAIL_WIDTH = 480  # pixels: a card on a sharp screen
# Likeness to photos that the model was not made from, dB, as the report explains it.
GOOD_DB, FAIR_DB = 25.0, 20.0


@dataclass(frozen=True)
class Run:
    """A run of the DAG, as far as the pages need it."""

    run_id: str
    capture_id: str
    state: str  # queued, running, success or failed
    preset: str
    overrides: Mapping[str, dict[str, object]]
    failed_task: str | None = None


class ModelFigures(BaseModel):
    """What the gallery reads of a model's report.json."""

    size_m: list[float]
    metric: bool
    heldout_psnr_foreground: float | None = None
    warnings: list[str] = []

    @property
    def size(self) -> str:
        """Width, height and depth in words."""
        if not self.metric:
            return "size unknown: no metric scale"
        return " × ".join(f"{1000 * length:.0f}" for length in self.size_m) + " mm"

    @property
    def quality(self) -> str:
        """Likeness on photos that the model was not made from, in words."""
        decibel = self.heldout_psnr_foreground
        if decibel is None:
            return "quality not measured"
        verdict = "good" if decibel >= GOOD_DB else "fair" if decibel >= FAIR_DB else "rough"
        return f"{verdict}, {decibel:.1f} dB"


@dataclass(frozen=True)
class Card:
    """One capture in the gallery."""

    capture_id: str
    name: str
    recorded_on: date
    user: str | None  # who paired the phone; None if it came another way
    state: str  # uploading, recorded, queued, running, failed, done
    published_at: datetime | None = None
    figures: ModelFigures | None = None


def gallery_cards(store: ArtifactStore, runs: Mapping[str, Run]) -> list[Card]:
    """Describe the newest captures, the newest first; `runs` are the latest of each capture, by its id."""
    captures = {location.capture_id: location.recorded_on for location in list_captures(store)[-MAX_SHOWN:]}
    sent = [stored.key.rpartition("/")[2].removesuffix(".json") for stored in store.list_objects(UPLOADS)]
    uploads = {
        upload.capture_id: upload
        for upload in parallel(lambda id_: read_upload(store, id_), sent[-MAX_SHOWN:])
        if upload
    }
    days = {id_: upload.recorded_at.date() for id_, upload in uploads.items()} | captures
    newest = sorted(days, key=lambda id_: (days[id_], id_), reverse=True)[:MAX_SHOWN]

    def card(id_: str) -> Card:
        upload, model = uploads.get(id_), latest_model(store, id_) if id_ in captures else None
        run = runs.get(id_)
        state = (
            "uploading" if id_ not in captures
            else run.state if run is not None and run.state != "success"
            else "done" if model is not None
            else "recorded"
        )  # fmt: skip
        return Card(
            capture_id=id_, name=upload.name if upload else id_, recorded_on=days[id_],
            user=upload.user if upload else None, state=state,
            published_at=model.published_at if model else None, figures=model_figures(store, model),
        )  # fmt: skip

    return parallel(card, newest)


def read_upload(store: ArtifactStore, capture_id: str) -> Upload | None:
    """Return what the phone said of a capture; None if it came another way."""
    try:
        return Upload.model_validate_json(store.read_bytes(f"{UPLOADS}/{capture_id}.json"))
    except (NotFoundError, ValidationError):
        return None


def model_figures(store: ArtifactStore, model: PublishedModel | None) -> ModelFigures | None:
    """Return the figures of a published model; None if there is none, or its report cannot be read."""
    if model is None:
        return None
    try:
        return ModelFigures.model_validate_json(store.read_bytes(f"{model.files}/{REPORT_DATA}"))
    except (NotFoundError, ValidationError):
        return None


def thumbnail(store: ArtifactStore, capture_id: str) -> bytes | None:
    """Return a small JPEG of a capture: its model's preview, else its first photo; None if it has neither.

    Raises MissingArtifactError if there is no such capture.
    """
    model = latest_model(store, capture_id)
    if model is not None and (key := f"{model.files}/{PREVIEW}") and store.exists(key):
        return _scaled(store.read_bytes(key))
    capture = find_capture(store, capture_id)
    index = CaptureIndex.model_validate_json(capture.document)
    photos = [entry.name for entry in index.files if entry.name.startswith("images/")]
    return _scaled(store.read_bytes(f"{capture.location.folder}/{photos[0]}")) if photos else None


def _scaled(raw: bytes) -> bytes | None:
    data = io.BytesIO()
    try:
        with Image.open(io.BytesIO(raw)) as image:
            image.draft("RGB", (THUMBNAIL_WIDTH, THUMBNAIL_WIDTH))  # a JPEG is decoded at an eighth of its size
            image.thumbnail((THUMBNAIL_WIDTH, 2 * THUMBNAIL_WIDTH))
            image.convert("RGB").save(data, "JPEG", quality=80)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return data.getvalue()

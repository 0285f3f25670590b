"""Published models: `models/<capture_id>/<fingerprint>/…` and the pointer `models/<capture_id>/latest.json`."""

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ValidationError

from scan2twin.errors import IntegrityError, MissingArtifactError, NotFoundError
from scan2twin.store.artifacts import MANIFEST, download, read_manifest
from scan2twin.store.base import ArtifactStore, disk_errors
from scan2twin.store.captures import check_capture_id
from scan2twin.store.manifest import Manifest
from scan2twin.store.transfer import parallel

MODELS = "models"


class PublishedModel(BaseModel):
    """`latest.json`: which model of a capture people should see."""

    capture_id: str
    fingerprint: str
    manifest: str  # key of the manifest
    files: str  # key prefix of the model's files
    published_at: datetime  # UTC


def publish(store: ArtifactStore, manifest: Manifest) -> PublishedModel:
    """Make a committed model the latest of its capture, in one atomic step; nothing is written if it is already."""
    current = latest_model(store, manifest.capture_id)
    if current is not None and current.fingerprint == manifest.fingerprint:
        return current
    folder = f"{MODELS}/{manifest.capture_id}/{manifest.fingerprint}"
    model = PublishedModel(
        capture_id=manifest.capture_id,
        fingerprint=manifest.fingerprint,
        manifest=f"{folder}/{MANIFEST}",
        files=f"{folder}/{manifest.attempt}",
        published_at=datetime.now(UTC),
    )
    store.put_bytes(_pointer(manifest.capture_id), model.model_dump_json(indent=1).encode())
    return model


def latest_model(store: ArtifactStore, capture_id: str) -> PublishedModel | None:
    """Return the published model of a capture, or None. Raises IntegrityError if the pointer is damaged."""
    key = _pointer(check_capture_id(capture_id))
    try:
        return PublishedModel.model_validate_json(store.read_bytes(key))
    except NotFoundError:
        return None
    except ValidationError as error:
        raise IntegrityError(
            f"store {store.uri}: {key} is damaged ({error.errors()[0]['msg']}); delete it and publish again"
        ) from None


def list_models(store: ArtifactStore) -> list[PublishedModel]:
    """List the latest model of every capture that has one, sorted by capture id."""
    models = parallel(lambda capture_id: latest_model(store, capture_id), store.list_folders(MODELS))
    return [model for model in models if model is not None]


def fetch_model(store: ArtifactStore, capture_id: str, out_dir: Path, manifest: Manifest | None = None) -> Manifest:
    """Write a model's files, the latest or the one of `manifest`, into `out_dir` and return its manifest.

    Every file is first downloaded beside and checked, so a failure leaves `out_dir` as it was; each then replaces
    its predecessor in one step. Other files in `out_dir` stay. Raises MissingArtifactError if nothing is published.
    """
    if manifest is None and (model := latest_model(store, capture_id)) is not None:
        manifest = read_manifest(store, f"{MODELS}/{capture_id}/{model.fingerprint}")
    if manifest is None:
        raise MissingArtifactError(f"store {store.uri}: no model of capture {capture_id!r} is published; run it first")
    with disk_errors(f"writing the model of {capture_id} to {out_dir}"):
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".scan2twin-", dir=out_dir) as temporary:
            download(store, f"{MODELS}/{capture_id}/{manifest.fingerprint}", manifest, Path(temporary))
            for entry in manifest.files:
                target = out_dir / entry.name
                target.parent.mkdir(parents=True, exist_ok=True)
                (Path(temporary) / entry.name).replace(target)
    return manifest


def _pointer(capture_id: str) -> str:
    return f"{MODELS}/{capture_id}/latest.json"

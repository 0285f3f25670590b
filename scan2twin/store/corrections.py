"""Masks that a person has corrected, beside the capture they belong to, which stays as it is:

    captures/YYYY/MM/DD/<capture_id>/corrections/<sha256>.png
    captures/YYYY/MM/DD/<capture_id>/corrections/masks.json

`masks.json` is written last and in one step; its bytes are the fingerprint of the input that the mask stage reads, so
a corrected mask lets a run go on from there and repeats no earlier stage.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scan2twin.capture.models import Intrinsics
from scan2twin.errors import IntegrityError
from scan2twin.store.artifacts import download_files
from scan2twin.store.base import ArtifactStore
from scan2twin.store.captures import CORRECTIONS, StoredCapture
from scan2twin.store.manifest import FileEntry, Sha256

FOLDER, INDEX = CORRECTIONS.split("/")


class CorrectedMask(BaseModel):
    """One corrected mask, 8-bit grey PNG, 255 = object."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    frame: int = Field(ge=0)  # `i` of the capture's frames.jsonl
    size: int = Field(ge=0)  # bytes
    sha256: Sha256
    # Of the square view it was drawn on (mask/dataset.json); None: it has the pixels of the photo as stored.
    intrinsics: Intrinsics | None = None

    @property
    def file(self) -> str:
        """Its name below the folder: named by content, so that a replaced mask never mixes with a running download."""
        return f"{self.sha256}.png"


class Corrections(BaseModel):
    """`masks.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    masks: Sequence[CorrectedMask] = ()


def corrections_of(capture: StoredCapture) -> Corrections:
    """Return the corrections of `capture`; empty if it has none. Raises IntegrityError if their list is damaged."""
    if not capture.corrections:
        return Corrections()
    try:
        return Corrections.model_validate_json(capture.corrections)
    except ValidationError as error:
        raise IntegrityError(
            f"{_folder(capture)}/{INDEX} is damaged ({error.errors()[0]['msg']}); delete it and add the masks again"
        ) from None


def add_corrections(
    store: ArtifactStore, capture: StoredCapture, masks: Mapping[int, tuple[Path, Intrinsics | None]]
) -> Corrections:
    """Store corrected masks by frame number, each with the square's intrinsics or None; earlier ones are replaced."""
    added = {}
    for frame, (path, intrinsics) in masks.items():
        data = path.read_bytes()
        mask = CorrectedMask(
            frame=frame, size=len(data), sha256=hashlib.sha256(data).hexdigest(), intrinsics=intrinsics
        )
        store.put_bytes(f"{_folder(capture)}/{mask.file}", data)
        added[frame] = mask
    kept = {mask.frame: mask for mask in corrections_of(capture).masks}
    return _write(store, capture, {**kept, **added})


def remove_corrections(store: ArtifactStore, capture: StoredCapture, frames: Sequence[int]) -> Corrections:
    """Take the corrections of `frames` back; the images stay in the store, for a run may be reading them."""
    kept = {mask.frame: mask for mask in corrections_of(capture).masks if mask.frame not in frames}
    return _write(store, capture, kept)


def download_corrections(store: ArtifactStore, capture: StoredCapture, target: Path) -> None:
    """Write `masks.json` and the masks it lists below `target`, each checked; nothing if there are none."""
    if not capture.corrections:
        return
    masks = corrections_of(capture).masks
    files = [FileEntry(name=mask.file, size=mask.size, sha256=mask.sha256) for mask in masks]
    download_files(store, _folder(capture), files, target)
    (target / INDEX).write_bytes(capture.corrections)


def _folder(capture: StoredCapture) -> str:
    return f"{capture.location.folder}/{FOLDER}"


def _write(store: ArtifactStore, capture: StoredCapture, masks: Mapping[int, CorrectedMask]) -> Corrections:
    corrections = Corrections(masks=[masks[frame] for frame in sorted(masks)])
    key = f"{_folder(capture)}/{INDEX}"
    if corrections.masks:
        store.put_bytes(key, corrections.model_dump_json(indent=1).encode())
    else:
        store.delete(key)
    return corrections

"""Masks out of the store to be looked at and edited, and back in: what a person does where the masks are not right."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from scan2twin.capture.models import FrameRecord, Intrinsics
from scan2twin.config import PipelineConfig
from scan2twin.errors import InputError, MissingArtifactError
from scan2twin.frames import Dataset
from scan2twin.runner import find_capture, fingerprints, output_folder
from scan2twin.stages import stage_named
from scan2twin.store import ArtifactStore
from scan2twin.store.artifacts import download_files, read_manifest
from scan2twin.store.captures import StoredCapture
from scan2twin.store.corrections import Corrections, add_corrections

DATASET = "dataset.json"
FETCHED = "fetched.json"  # SHA-256 of each mask as fetched, so that only edited ones are put back
_WANTED = re.compile(r"(images|masks)/[0-9]{6}\.png|dataset\.json|contact_sheet\.jpg")
_MASK = re.compile(r"[0-9]{6}\.png")


def fetch_masks(store: ArtifactStore, capture_id: str, config: PipelineConfig, folder: Path) -> int:
    """Write the mask stage's square photos, masks and contact sheet into `folder`; return how many masks there are.

    Raises MissingArtifactError if the stage has not run under `config`.
    """
    capture = find_capture(store, capture_id)
    key = output_folder(capture_id, stage_named("mask"), fingerprints(capture, config)["mask"])
    manifest = read_manifest(store, key)
    if manifest is None:
        raise MissingArtifactError(
            f"capture {capture_id!r} has no masks under this configuration; run the stage mask first, or give the "
            "--preset, --config and --set of the run"
        )
    files = [entry for entry in manifest.files if _WANTED.fullmatch(entry.name)]
    download_files(store, f"{key}/{manifest.attempt}", files, folder)
    fetched = {entry.name: entry.sha256 for entry in files if entry.name.startswith("masks/")}
    (folder / FETCHED).write_text(json.dumps(fetched, indent=1), encoding="utf-8")
    return len(fetched)


def add_masks(store: ArtifactStore, capture_id: str, folder: Path) -> tuple[list[int], Corrections]:
    """Store the edited masks in `folder` as corrections of the capture; return their frames and all corrections.

    `folder` is one that `fetch_masks` filled (masks that were not changed are left alone) or holds NNNNNN.png, each as
    large as its photo. Nothing is stored unless all are right.

    Raises:
        InputError: there is no such frame, a mask cannot be read or has another size, or nothing was edited.

    """
    capture = find_capture(store, capture_id)
    photos = {record.i: record for record in _frames(store, capture)}
    squares = _squares(folder)
    fetched = json.loads((folder / FETCHED).read_text(encoding="utf-8")) if (folder / FETCHED).exists() else {}
    below = folder / "masks" if (folder / "masks").is_dir() else folder
    masks: dict[int, tuple[Path, Intrinsics | None]] = {}
    reasons = []
    for path in sorted(below.glob("*.png")):
        if fetched.get(f"masks/{path.name}") == hashlib.sha256(path.read_bytes()).hexdigest():
            continue
        if not _MASK.fullmatch(path.name) or int(path.stem) not in photos:
            reasons.append(f"{path}: the capture has no such frame; name it like its frame, e.g. 000012.png")
            continue
        frame = int(path.stem)
        try:
            with Image.open(path) as image:
                image.load()
                size = image.size
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            reasons.append(f"{path}: cannot be decoded ({error}); export it again as 8-bit PNG")
            continue
        photo, square = photos[frame], squares.get(frame)
        if size == (photo.width, photo.height):
            masks[frame] = path, None
        elif square is not None and size == square[0]:
            masks[frame] = path, square[1]
        else:
            other = f", its square view {square[0][0]}×{square[0][1]}" if square else ""
            reasons.append(
                f"{path}: has {size[0]}×{size[1]} pixels, the photo {photo.width}×{photo.height}{other}; keep the size"
            )
    if not masks and not reasons:
        reasons.append(f"{folder}: no edited masks there; edit masks/NNNNNN.png, or put in masks as large as photos")
    if reasons:
        raise InputError(*reasons)
    return sorted(masks), add_corrections(store, capture, masks)


def _squares(folder: Path) -> Mapping[int, tuple[tuple[int, int], Intrinsics]]:
    """Return size and intrinsics of each square view, by frame, where `folder` has a dataset's description."""
    if not (folder / DATASET).exists():
        return {}
    dataset = Dataset.read(folder / DATASET)
    size = dataset.resolution, dataset.resolution
    return {frame.index: (size, frame.intrinsics) for frame in dataset.frames}


def _frames(store: ArtifactStore, capture: StoredCapture) -> list[FrameRecord]:
    lines = store.read_bytes(f"{capture.location.folder}/frames.jsonl").splitlines()
    return [FrameRecord.model_validate_json(line) for line in lines]

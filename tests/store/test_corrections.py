"""Corrected masks: beside the capture, and only the mask stage and what follows sees them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scan2twin import stages
from scan2twin.capture.models import Intrinsics
from scan2twin.config import resolve_config
from scan2twin.edited_masks import add_masks, fetch_masks
from scan2twin.errors import InputError, IntegrityError, MissingArtifactError
from scan2twin.progress import LogProgress
from scan2twin.runner import StageRun, find_capture, import_capture, run_pipeline
from scan2twin.stages import CAPTURE, CORRECTIONS, Stage
from scan2twin.store import ArtifactStore, open_store
from scan2twin.store.corrections import corrections_of, remove_corrections

CAPTURE_ID = "test-capture"
CONFIG = resolve_config("draft", {})
SIDE = 32  # of the square views
NAMES = ("validate", "mask", "publish")
# The mask stage that this needs: a square view and mask of each frame, and what it was given.
MASK_STAGE = """
import numpy as np
from PIL import Image
from scan2twin.capture.models import Intrinsics
from scan2twin.frames import Dataset, DatasetFrame
from scan2twin.stages import StageResult

def run(inputs, outputs, config, progress):
    frames = []
    for folder in ("images", "masks"):
        (outputs / folder).mkdir()
    for i in range(10):
        for name, colour in ((f"images/{i:06d}.png", 90), (f"masks/{i:06d}.png", 255)):
            Image.fromarray(np.full((32, 32), colour, np.uint8)).save(outputs / name)
        k = Intrinsics(fx=40.0 + i, fy=40.0 + i, cx=16.0, cy=16.0)
        frames.append(DatasetFrame(index=i, image=f"images/{i:06d}.png", mask=f"masks/{i:06d}.png", intrinsics=k,
                                   camera_to_unit=np.eye(4).tolist(), split="train"))
    unit = np.eye(4).tolist()
    Dataset(capture_id="test-capture", resolution=32, metric=True, unit_to_reference=unit,
            object_size_unit=[1, 1, 1], frames=frames).write(outputs / "dataset.json")
    (outputs / "contact_sheet.jpg").write_bytes(b"sheet")
    (outputs / "coverage.png").write_bytes(b"cover")
    given = inputs["corrections"]
    return StageResult({"corrections": sorted(p.name for p in given.iterdir())})
"""
OTHER_STAGE = """
from scan2twin.stages import StageResult

def run(inputs, outputs, config, progress):
    (outputs / "file.txt").write_text("content")
    return StageResult()
"""


@pytest.fixture
def store(tmp_path: Path, make_capture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """A store with a capture of ten frames of 48 × 64 pixels, and a pipeline of three small stages."""
    modules = tmp_path / "modules"
    modules.mkdir()
    for name in NAMES:
        (modules / f"small_{name}.py").write_text(MASK_STAGE if name == "mask" else OTHER_STAGE)
        sys.modules.pop(f"small_{name}", None)
    monkeypatch.syspath_prepend(str(modules))
    small = (
        Stage("validate", "small_validate", (CAPTURE,), ""),
        Stage("mask", "small_mask", (CAPTURE, CORRECTIONS, "validate"), ""),
        Stage("publish", "small_publish", ("mask",), "", publishes=True),
    )
    monkeypatch.setattr(stages, "STAGES", small)
    artifacts = open_store(str(tmp_path / "store"))
    import_capture(artifacts, make_capture())
    return artifacts


def run(store: ArtifactStore) -> list[StageRun]:
    return run_pipeline(store, CAPTURE_ID, CONFIG, LogProgress())


def write_mask(path: Path, width: int, height: int) -> None:
    Image.fromarray(np.arange(width * height, dtype=np.uint32).reshape(height, width).astype(np.uint8)).save(path)


def test_an_edited_mask_lets_the_run_go_on_from_the_mask_stage(store: ArtifactStore, tmp_path: Path) -> None:
    first = run(store)
    assert first[1].manifest.metrics == {"corrections": []}
    capture_before = find_capture(store, CAPTURE_ID).fingerprint
    assert fetch_masks(store, CAPTURE_ID, CONFIG, tmp_path / "look") == 10
    assert (tmp_path / "look" / "contact_sheet.jpg").exists()
    assert not (tmp_path / "look" / "coverage.png").exists()
    write_mask(tmp_path / "look" / "masks" / "000003.png", SIDE, SIDE)
    frames, corrections = add_masks(store, CAPTURE_ID, tmp_path / "look")
    assert frames == [3]
    assert corrections.masks[0].intrinsics == Intrinsics(fx=43.0, fy=43.0, cx=16.0, cy=16.0)

    assert find_capture(store, CAPTURE_ID).fingerprint == capture_before
    again = run(store)
    assert [one.skipped for one in again] == [True, False, False]
    assert again[1].manifest.metrics == {"corrections": sorted([corrections.masks[0].file, "masks.json"])}
    assert [one.skipped for one in run(store)] == [True] * 3

    left = remove_corrections(store, find_capture(store, CAPTURE_ID), [3])
    assert not left.masks
    assert [one.skipped for one in run(store)] == [True] * 3  # as before the correction
    assert run(store)[1].manifest.fingerprint == first[1].manifest.fingerprint


def test_masks_as_large_as_the_photos_are_added_to_those_there_are(store: ArtifactStore, tmp_path: Path) -> None:
    for folder, frame, seed in (("one", 4, 48), ("two", 7, 48), ("three", 4, 48)):
        (tmp_path / folder).mkdir()
        write_mask(tmp_path / folder / f"{frame:06d}.png", seed, 64)
    Image.fromarray(np.zeros((64, 48), np.uint8)).save(tmp_path / "three" / "000004.png")
    add_masks(store, CAPTURE_ID, tmp_path / "one")
    _, both = add_masks(store, CAPTURE_ID, tmp_path / "two")
    assert [(mask.frame, mask.intrinsics) for mask in both.masks] == [(4, None), (7, None)]
    _, replaced = add_masks(store, CAPTURE_ID, tmp_path / "three")
    assert [mask.frame for mask in replaced.masks] == [4, 7]
    assert replaced.masks[0].sha256 != both.masks[0].sha256
    assert corrections_of(find_capture(store, CAPTURE_ID)) == replaced


def test_everything_wrong_with_edited_masks_is_said_and_nothing_is_stored(store: ArtifactStore, tmp_path: Path) -> None:
    run(store)
    fetch_masks(store, CAPTURE_ID, CONFIG, tmp_path / "look")
    masks = tmp_path / "look" / "masks"
    write_mask(masks / "000002.png", SIDE, SIDE)  # this one would be right
    write_mask(masks / "000001.png", 20, 20)
    write_mask(masks / "000077.png", SIDE, SIDE)
    (masks / "000005.png").write_bytes((masks / "000005.png").read_bytes()[:60])
    with pytest.raises(InputError) as error:
        add_masks(store, CAPTURE_ID, tmp_path / "look")
    size, broken, unknown = error.value.reasons
    assert "000001.png: has 20×20 pixels, the photo 48×64, its square view 32×32; keep the size" in size
    assert "000005.png: cannot be decoded" in broken
    assert "000077.png: the capture has no such frame" in unknown
    assert corrections_of(find_capture(store, CAPTURE_ID)).masks == ()


def test_a_folder_without_an_edited_mask_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    run(store)
    fetch_masks(store, CAPTURE_ID, CONFIG, tmp_path / "look")
    with pytest.raises(InputError, match="no edited masks there"):
        add_masks(store, CAPTURE_ID, tmp_path / "look")


def test_masks_that_were_not_made_cannot_be_fetched(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="no masks under this configuration; run the stage mask first"):
        fetch_masks(store, CAPTURE_ID, CONFIG, tmp_path / "look")


def test_a_damaged_list_of_corrections_is_refused(store: ArtifactStore) -> None:
    key = f"{find_capture(store, CAPTURE_ID).location.folder}/corrections/masks.json"
    store.put_bytes(key, json.dumps({"masks": [{"frame": -1}]}).encode())
    with pytest.raises(IntegrityError, match=r"corrections/masks\.json is damaged .*delete it"):
        run(store)

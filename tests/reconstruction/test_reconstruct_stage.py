import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import trimesh
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from views_of_a_ball import CENTRE, RADIUS, camera_centres, color_srgb, write_dataset

from reconstruction import checkpoint
from reconstruction.color import srgb_to_linear
from reconstruction.field import MaterialField, load_field
from reconstruction.reconstruct import run
from scan2twin.config import ReconstructConfig
from scan2twin.errors import ConfigError, InputError
from scan2twin.frames import Dataset
from scan2twin.progress import LogProgress
from scan2twin.stages import StageInputs

SMALL = ReconstructConfig(iterations=120, resolution=64, grid=16, appearance="flash")


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    write_dataset(folder, camera_centres(18))
    return folder


def reconstruct(dataset: Path, outputs: Path, config=SMALL, checkpoints=None):
    outputs.mkdir()
    return run(StageInputs({"mask": dataset}, checkpoints=checkpoints), outputs, config, LogProgress())


@pytest.fixture(scope="module")
def result(ball, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("stage") / "out"
    return reconstruct(ball, outputs), outputs


def test_the_stage_writes_what_it_promises(result):
    stage, outputs = result
    assert sorted(p.name for p in outputs.iterdir()) == [
        "field.pt", "heldout", "light.json", "mesh.npz", "metrics.jsonl", "result.json", "views.npz",
    ]  # fmt: skip
    assert json.loads((outputs / "result.json").read_text()) == stage.metrics
    lines = [json.loads(line) for line in (outputs / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(0, 120, 10))
    assert sorted(p.name for p in (outputs / "heldout").iterdir()) == [
        "000003.png", "000009.png", "000015.png", "cameras.npz",
    ]  # fmt: skip
    assert cv2.imread(str(outputs / "heldout" / "000003.png")).shape == (64, 192, 3)
    views = np.load(outputs / "views.npz")
    assert views["camera_from_unit"].shape == (15, 4, 4)
    assert views["gain"].shape == (15, 3)


def test_mesh_and_field_are_the_ball(result):
    _, outputs = result
    arrays = np.load(outputs / "mesh.npz")
    assert arrays["vertices"].dtype == np.float32
    assert arrays["faces"].dtype == np.int32
    mesh = trimesh.Trimesh(arrays["vertices"], arrays["faces"], process=False)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.03)
    normals = (mesh.vertices - CENTRE) / np.linalg.norm(mesh.vertices - CENTRE, axis=1, keepdims=True)
    expected = srgb_to_linear(torch.from_numpy(color_srgb(normals)))
    found = load_field(outputs / "field.pt")(torch.tensor(mesh.vertices, dtype=torch.float32)).albedo
    assert float((found - expected).abs().mean()) < 0.04


def test_figures_describe_the_result(result):
    stage, outputs = result
    assert stage.metrics["heldout_views"] == 3
    assert stage.metrics["heldout_psnr_foreground"] > 22
    assert stage.metrics["heldout_psnr"] > stage.metrics["heldout_psnr_foreground"]  # the background fits for nothing
    assert stage.metrics["mask_iou_heldout"] > 0.97
    assert stage.metrics["triangles"] == len(np.load(outputs / "mesh.npz")["faces"])


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(ball, result, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "INTERVAL_S", 0.0)

    class Killed(LogProgress):
        def advance(self, steps: int = 1, **figures: float) -> None:
            self.steps = getattr(self, "steps", 0) + steps
            if self.steps > 30:
                raise KeyboardInterrupt

    (tmp_path / "first").mkdir()
    inputs = StageInputs({"mask": ball}, checkpoints=tmp_path / "kept")
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "first", SMALL, Killed())
    second = tmp_path / "second"
    reconstruct(ball, second, checkpoints=tmp_path / "kept")
    assert json.loads((second / "metrics.jsonl").read_text().splitlines()[0]) == {"resumed_at": 30}
    whole, resumed = np.load(result[1] / "mesh.npz"), np.load(second / "mesh.npz")
    np.testing.assert_array_equal(whole["vertices"], resumed["vertices"])
    np.testing.assert_array_equal(whole["faces"], resumed["faces"])


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_a_broken_checkpoint_is_no_obstacle(ball, tmp_path, content):
    (tmp_path / checkpoint.FILE).write_bytes(content)
    short = ReconstructConfig(iterations=2, resolution=32, grid=8, appearance="flash")
    assert reconstruct(ball, tmp_path / "out", short, checkpoints=tmp_path).metrics["triangles"] > 0


def edit(ball: Path, tmp_path: Path, change) -> Path:
    """A copy of the dataset's description, its files linked, after `change` was made to the frames."""
    folder = tmp_path / "edited"
    folder.mkdir()
    for name in ("images", "masks"):
        (folder / name).mkdir()
        for file in (ball / name).iterdir():
            (folder / name / file.name).write_bytes(file.read_bytes())
    dataset = Dataset.read(ball / "dataset.json")
    change(dataset, folder)
    dataset.write(folder / "dataset.json")
    return folder


def refuse(ball, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        reconstruct(edit(ball, tmp_path, change), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_too_few_views_are_refused(ball, tmp_path):
    def change(dataset, _):
        del dataset.frames[8:]

    refuse(ball, tmp_path, change, "7 usable masked views to train on, 8 are needed")


def test_empty_and_full_masks_are_left_out_with_a_word(ball, tmp_path):
    def change(dataset, folder):
        for frame, value in zip(dataset.frames[:2], (0, 255), strict=True):
            cv2.imwrite(str(folder / frame.mask), np.full((64, 64), value, np.uint8))

    short = ReconstructConfig(iterations=2, resolution=32, grid=8, appearance="flash")
    warnings = reconstruct(edit(ball, tmp_path, change), tmp_path / "out", short).warnings
    assert any("masks/000000.png: view left out, its mask is empty" in w for w in warnings)
    assert any("masks/000001.png: view left out, its mask is full" in w for w in warnings)


def test_only_empty_masks_are_refused_naming_each(ball, tmp_path):
    def change(dataset, folder):
        for frame in dataset.frames:
            cv2.imwrite(str(folder / frame.mask), np.zeros((64, 64), np.uint8))

    refuse(ball, tmp_path, change, r"(?s)0 usable masked views.*masks/000017\.png")


def test_a_camera_inside_the_object_is_refused(ball, tmp_path):
    def change(dataset, _):
        dataset.frames[4].camera_to_unit[0][3] = dataset.frames[4].camera_to_unit[1][3] = 0.1
        dataset.frames[4].camera_to_unit[2][3] = 0.2

    refuse(ball, tmp_path, change, "frame 4: the camera is inside the object's box")


def test_views_from_one_side_are_refused(tmp_path):
    centres = np.array([2.0, 0.3, 0.0]) + np.random.default_rng(0).uniform(-0.2, 0.2, (12, 3))
    write_dataset(tmp_path / "side", centres)
    with pytest.raises(InputError, match="all 10 cameras look from one side"):
        reconstruct(tmp_path / "side", tmp_path / "out")


def test_a_missing_and_a_misshapen_image_are_both_named(ball, tmp_path):
    def change(dataset, folder):
        (folder / dataset.frames[0].image).unlink()
        cv2.imwrite(str(folder / dataset.frames[1].mask), np.zeros((20, 30), np.uint8))

    refuse(ball, tmp_path, change, r"(?s)images/000000\.png: missing.*masks/000001\.png: 30×20 pixels")


def test_a_photo_that_does_not_fit_the_others_is_named(ball, tmp_path):
    def change(dataset, folder):
        path = str(folder / dataset.frames[5].image)
        cv2.imwrite(path, np.ascontiguousarray(cv2.imread(path)[:, ::-1]))  # mirrored: its colours fit nowhere

    (warning,) = reconstruct(edit(ball, tmp_path, change), tmp_path / "out").warnings
    assert warning.startswith("frame 5: does not fit the other views (")
    assert "and counted only" in warning


def test_a_dataset_without_heldout_views_says_that_quality_is_unknown(tmp_path):
    write_dataset(tmp_path / "all", camera_centres(9), heldout_every=0)
    short = ReconstructConfig(iterations=2, resolution=32, grid=8, appearance="flash")
    stage = reconstruct(tmp_path / "all", tmp_path / "out", short)
    assert stage.metrics["heldout_psnr"] is None
    assert "no view was held out, so the model's quality on new views is not measured" in stage.warnings


def test_a_field_of_another_format_is_refused(tmp_path):
    field = MaterialField()
    field.save(tmp_path / "field.pt")
    document = torch.load(tmp_path / "field.pt", weights_only=True)
    torch.save({**document, "format": 99}, tmp_path / "field.pt")
    with pytest.raises(InputError, match="field format 99 is not 3"):
        load_field(tmp_path / "field.pt")


def test_tensorboard_gets_scalars_and_pictures_when_asked(ball, tmp_path):
    reconstruct(
        ball,
        tmp_path / "out",
        ReconstructConfig(iterations=20, resolution=32, grid=8, appearance="flash", tensorboard=True),
    )
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "psnr", "triangles", "it_per_s", "eta_s"):
        scalars = events.Scalars(f"reconstruct/{name}")
        assert [s.step for s in scalars] == [0, 10]
        assert [s.value for s in scalars] == pytest.approx([line[name] for line in lines], rel=1e-5)
    assert lines[0]["eta_s"] > 0
    (tag,) = events.Tags()["images"]
    assert tag == "reconstruct/frame 0: photo, rendering, error x4"
    pictures = events.Images(tag)
    assert [p.step for p in pictures] == list(range(20))
    picture = cv2.imdecode(np.frombuffer(pictures[-1].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (32, 96, 3)
    photo, rendering = picture[:, :32].astype(float), picture[:, 32:64].astype(float)
    assert np.corrcoef(photo.ravel(), rendering.ravel())[0, 1] > 0.9  # it shows the ball


def test_tensorboard_asked_for_and_not_installed_is_named(ball, tmp_path, monkeypatch):
    config = ReconstructConfig(iterations=2, resolution=32, grid=8, appearance="flash", tensorboard=True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="TensorBoard is not installed"):
        reconstruct(ball, tmp_path / "out", config)

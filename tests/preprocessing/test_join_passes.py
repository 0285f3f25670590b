"""A painted box is photographed, turned over on its patterned floor, and photographed again (see synthetic_capture)."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from preprocessing import compensate_poses, condition, refine_poses, synthetic_capture, validate
from preprocessing.images import read_mask
from preprocessing.join_passes import MIN_PAIRS, Joint, spread_of
from preprocessing.masks.hull import grid_over, projection, vote
from preprocessing.synthetic_capture import SIZE, draw, make_synthetic_capture, paint_and_floor
from scan2twin.capture.models import CaptureHeader
from scan2twin.capture.reader import check_bundle, read_capture
from scan2twin.capture.writer import write_capture
from scan2twin.config import CompensatePosesConfig, ConditionConfig, RefinePosesConfig, ValidateConfig
from scan2twin.frames import PosedFrames
from scan2twin.progress import LogProgress
from scan2twin.stages import StageInputs, StageResult

FRAMES = 20  # of each pass
HEIGHTS = (0.28, 0.62)  # of the rounds, metres: one shows the sides, one the top
PRINCIPAL_POINT = np.array([synthetic_capture.WIDTH / 2 - 3.4, synthetic_capture.HEIGHT / 2 + 4.2])
DIAGONAL = float(np.linalg.norm(SIZE))
OPTIONS = RefinePosesConfig(max_features=1000, neighbours=6)


def standing_on_its_top(yaw_deg: float) -> np.ndarray:
    """Return how the box stands (box to floor): upside down, turned by `yaw_deg`, beside its first place."""
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("zy", [180, yaw_deg], degrees=True).as_matrix()
    turned[:3, 3] = [0.04, SIZE[1], -0.03]
    return turned


def posed(capture: Path, work: Path) -> tuple[StageResult, PosedFrames]:
    """Run the stages up to refine_poses."""
    inputs = {"capture": capture}
    stages = (
        (validate, ValidateConfig()), (condition, ConditionConfig()), (compensate_poses, CompensatePosesConfig()),
        (refine_poses, OPTIONS),
    )  # fmt: skip
    for module, config in stages:
        name = module.__name__.rpartition(".")[2]
        inputs[name] = work / name
        inputs[name].mkdir(parents=True)
        result = module.run(StageInputs(dict(inputs)), inputs[name], config, LogProgress())
    return result, PosedFrames.read(work / "refine_poses/poses.json")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_capture, "FRAMES", FRAMES)
        patch.setattr(synthetic_capture, "HEIGHTS", HEIGHTS)
        patch.setattr(synthetic_capture, "BLURRED", ())
        return make_synthetic_capture(tmp_path_factory.mktemp("drawn") / "box", standing_on_its_top(67))


@pytest.fixture(scope="module")
def joined(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[StageResult, PosedFrames, Path]:
    work = tmp_path_factory.mktemp("joined")
    return *posed(drawn / "capture", work), work


def errors(poses: PosedFrames, truth: Path) -> np.ndarray:
    """Return what takes true to found poses, 4×4 for each frame, where the box is."""
    known = {one["i"]: np.array(one["camera_to_anchor"]) for one in json.loads(truth.read_text())["frames"]}
    return np.array([np.array(f.camera_to_reference) @ np.linalg.inv(known[f.index]) for f in poses.frames])


def test_a_capture_of_two_passes_is_a_whole_bundle(drawn):
    assert check_bundle(drawn / "capture") == []


def test_the_box_turned_over_is_found_where_it_was(drawn, joined):
    result, poses, _ = joined
    assert not any("left out" in warning for warning in result.warnings)
    assert [frame.index for frame in poses.frames] == list(range(2 * FRAMES))
    assert poses.turned == []
    [figures] = result.metrics["turned"]
    assert figures["joined"] is True
    error = errors(poses, drawn / "truth/poses.json")
    first, second = error[:FRAMES], error[FRAMES:]
    centre = np.array([0, SIZE[1] / 2, 0])
    mean = [Rotation.from_matrix(one[:, :3, :3]).mean() for one in (first, second)]
    moved = [np.median((one @ [*centre, 1])[:, :3], axis=0) for one in (first, second)]
    assert np.degrees((mean[0].inv() * mean[1]).magnitude()) < 1
    assert np.linalg.norm(moved[0] - moved[1]) < 0.01 * DIAGONAL


def test_points_of_both_passes_lie_on_the_box_its_underside_too(joined):
    _, poses, work = joined
    points = np.load(work / "refine_poses/points.npz")
    assert points["seen"].max() == len(points["xyz"]) - 1
    assert np.array_equal(np.bincount(points["seen"]), points["frames"])
    beyond = np.abs(points["xyz"] - np.array(poses.object.center)) - np.array(SIZE) / 2  # 0 on the surface
    by_second = np.zeros(len(beyond), bool)
    by_second[points["seen"][points["seen_by"] >= FRAMES]] = True
    near = by_second & (beyond.max(axis=1) < 0.01)
    under = near & (points["xyz"][:, 1] < 0.01)
    assert near.sum() > 200
    assert np.median(np.abs(beyond[near].max(axis=1))) < 0.002
    assert under.sum() > 10


def test_both_passes_close_the_hull_at_the_bottom(drawn, joined):
    _, poses, _ = joined
    grid = grid_over(np.array([-0.2, -0.2, -0.2]), np.array([0.2, 0.4, 0.2]), 100)
    heights = grid.origin[1] + grid.step * np.arange(grid.shape[1])

    def hull(frames: list) -> np.ndarray:
        masks, cameras = [], []
        for frame in frames:
            mask = read_mask(drawn / f"truth/masks/{frame.index:06d}.png")
            # `condition` has moved the principal point to the middle.
            left, top = PRINCIPAL_POINT - np.array([frame.width, frame.height]) / 2
            masks.append(cv2.warpAffine(mask, np.float32([[1, 0, -left], [0, 1, -top]]), (frame.width, frame.height)))
            cameras.append(projection(np.array(frame.camera_to_reference), frame.intrinsics))
        weights, known = np.ones(len(masks), np.float32), np.ones((len(masks), *masks[0].shape), bool)
        return vote(grid, np.stack(masks), known, np.stack(cameras), weights) > 0.9

    alone, both = hull(poses.frames[:FRAMES]), hull(poses.frames)
    below = heights < -grid.step
    assert alone[:, below].sum() > 0.02 * alone.sum()  # from above nobody sees where the box ends
    assert both[:, below].sum() < 0.1 * alone[:, below].sum()
    assert 1 < both.sum() * grid.step**3 / np.prod(SIZE) < 1.2  # the corners' edges are seen from few directions


def test_what_both_passes_show_of_the_floor_does_not_join_them(drawn, tmp_path):
    """The second pass shows a box with other paint, on the same floor."""
    folder = tmp_path / "capture"
    shutil.copytree(drawn / "capture", folder)
    capture, standing = read_capture(folder), standing_on_its_top(67)
    known = json.loads((drawn / "truth/poses.json").read_text())["frames"]
    floor = paint_and_floor(np.random.default_rng(0))[1]
    paint = paint_and_floor(np.random.default_rng(1))[0]
    for frame in capture.frames[FRAMES:]:
        camera = standing @ np.array(known[frame.i]["camera_to_anchor"])
        rgb, _ = draw(camera, frame.intrinsics, paint, floor, standing)
        Image.fromarray(rgb).save(folder / frame.file, quality=92)
    header = CaptureHeader(**{name: getattr(capture.document, name) for name in CaptureHeader.model_fields})
    write_capture(folder, header, capture.frames)
    result, poses = posed(folder, tmp_path / "work")
    assert [frame.index for frame in poses.frames] == list(range(FRAMES))
    [figures] = result.metrics["turned"]
    assert figures["joined"] is False
    assert figures["pairs"] < MIN_PAIRS
    [warning] = [warning for warning in result.warnings if "turned over" in warning]
    assert warning.startswith(f"frames {FRAMES} to {2 * FRAMES - 1}, of the object turned over, are left out: how the")
    assert "take more photos from low down" in warning
    assert np.load(tmp_path / "work/refine_poses/points.npz")["seen_by"].max() < FRAMES


def test_passes_are_joined_by_the_tracker_s_poses_too(drawn, joined, tmp_path):
    *_, work = joined
    inputs = StageInputs({name: work / name for name in ("condition", "compensate_poses")})
    result = refine_poses.run(inputs, tmp_path, RefinePosesConfig(enabled=False), LogProgress())
    assert result.warnings == []
    error = errors(PosedFrames.read(tmp_path / "poses.json"), drawn / "truth/poses.json")
    turn = [Rotation.from_matrix(one[:, :3, :3]).mean() for one in (error[:FRAMES], error[FRAMES:])]
    assert np.degrees((turn[0].inv() * turn[1]).magnitude()) < 1.5


def test_a_part_that_shows_nothing_after_it_was_turned_over_is_left_out(joined, tmp_path):
    *_, work = joined
    shutil.copytree(work / "condition", tmp_path / "condition")
    for path in sorted((tmp_path / "condition/images").iterdir())[FRAMES:]:
        Image.new("RGB", Image.open(path).size, (128, 128, 128)).save(path)
    inputs = StageInputs({"condition": tmp_path / "condition", "compensate_poses": work / "compensate_poses"})
    (tmp_path / "out").mkdir()
    result = refine_poses.run(inputs, tmp_path / "out", RefinePosesConfig(enabled=False), LogProgress())
    assert len(PosedFrames.read(tmp_path / "out/poses.json").frames) == FRAMES
    assert "only 0 of the object's points are seen in both" in result.warnings[0]


def test_the_spread_is_that_of_repeated_measurements():
    rng = np.random.default_rng(0)
    places = rng.uniform(-0.2, 0.2, (8, 3))
    source = rng.uniform(-0.1, 0.1, (40, 3))
    rotation, shift = Rotation.random(rng=rng), np.array([0.3, 0.1, 0.2])

    def measured() -> np.ndarray:
        return rotation.apply(source) + shift + 0.003 * rng.normal(size=source.shape)

    apart = []
    at = (places - shift) @ rotation.as_matrix()
    for _ in range(300):
        target = measured()
        turn = Rotation.align_vectors(target - target.mean(0), source - source.mean(0))[0]
        apart.append(turn.apply(at - source.mean(0)) + target.mean(0) - places)
    expected = np.sqrt(np.square(apart).sum(axis=2).mean())
    assert np.mean([spread_of(source, measured(), places) for _ in range(20)]) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pairs": MIN_PAIRS - 1, "error_px": 1.0, "spread": 0.001}, "only 14 of the object's points"),
        ({"pairs": 40, "error_px": 1.0, "spread": 0.03}, "only roughly (to 3.0%"),
        ({"pairs": 40, "error_px": 9.0, "spread": 0.001}, "9 px off in the other"),
    ],
)
def test_a_doubtful_joint_says_why_it_is_not_believed(values, words):
    assert words in Joint(**values).fault
    assert Joint(**values).figures["joined"] is False
    assert Joint(pairs=40, error_px=1.0, spread=0.001).fault is None

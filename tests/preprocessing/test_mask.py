"""The mask stage on the small spot capture, with the truth's masks and with the shipped network."""

import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from preprocessing import condition, mask
from preprocessing.benchmark_masks import measure_masks
from preprocessing.crop import Crop, photo_rectangle, whole_pixels
from preprocessing.images import UInt8
from preprocessing.masks import masker
from preprocessing.masks.backends import NORMALISATIONS, grabcut, network, u2netp
from preprocessing.masks.components import cut_share, largest_component
from scan2twin.capture.models import CaptureHeader, Intrinsics, ObjectBox
from scan2twin.capture.reader import read_capture
from scan2twin.capture.writer import write_capture
from scan2twin.config import ConditionConfig, MaskConfig
from scan2twin.errors import ConfigError, InputError
from scan2twin.frames import (
    ConditionedFrames,
    Dataset,
    DatasetFrame,
    PosedFrame,
    PosedFrames,
    Validation,
)
from scan2twin.progress import LogProgress
from scan2twin.stages import CAPTURE, CORRECTIONS, StageInputs
from scan2twin.store.corrections import CorrectedMask, Corrections

SPOT = Path(__file__).parents[1] / "data" / "spot-capture"
FRAMES = [2, 7, 12, 17, 22, 26, 32, 37, 41, 47, 52, 57]  # of the 60; none is blurred


def iou(one: UInt8, other: UInt8) -> float:
    a, b = one >= 128, other >= 128
    return float((a & b).sum() / max((a | b).sum(), 1))


def posed_by_truth(conditioned: ConditionedFrames, box: ObjectBox | None = None) -> PosedFrames:
    truth = json.loads((SPOT / "truth" / "poses.json").read_text())
    poses = {frame["i"]: frame["camera_to_anchor"] for frame in truth["frames"]}
    box = box or conditioned.object
    assert box is not None
    unit_to_reference = np.diag([max(box.size)] * 3 + [1.0])
    unit_to_reference[:3, 3] = box.center
    return PosedFrames(
        capture_id=conditioned.capture_id, metric=True, object=box, unit_to_reference=unit_to_reference.tolist(),
        frames=[
            PosedFrame(
                index=frame.index, file=frame.file, width=frame.width, height=frame.height,
                intrinsics=frame.intrinsics, camera_to_reference=poses[frame.index],
                gain=None if frame.index == FRAMES[0] else (1.0, 0.5, 1.0 + frame.index),
            )
            for frame in conditioned.frames
        ],
    )  # fmt: skip


@pytest.fixture(scope="module")
def spot(tmp_path_factory: pytest.TempPathFactory) -> StageInputs:
    """12 frames of spot, conditioned, posed by the truth; the capture has no masks."""
    folder = tmp_path_factory.mktemp("spot")
    for stage in ("validate", "condition", "refine_poses"):
        (folder / stage).mkdir()
    Validation(capture_id="spot-arcore", frame_count=60, usable=FRAMES, unusable=[], warnings=[]).write(
        folder / "validate" / "validation.json"
    )
    folders = {CAPTURE: SPOT / "capture", **{stage: folder / stage for stage in ("validate", "condition")}}
    condition.run(StageInputs(folders), folder / "condition", ConditionConfig(), LogProgress())
    posed_by_truth(ConditionedFrames.read(folder / "condition" / "cameras.json")).write(
        folder / "refine_poses" / "poses.json"
    )
    return StageInputs({**folders, "refine_poses": folder / "refine_poses"})


@pytest.fixture(scope="module")
def spot_with_masks(spot: StageInputs, tmp_path_factory: pytest.TempPathFactory) -> StageInputs:
    """The same, with the truth's masks as the user's."""
    bundle = tmp_path_factory.mktemp("bundle") / "capture"
    shutil.copytree(SPOT / "capture" / "images", bundle / "images")
    shutil.copytree(SPOT / "truth" / "masks", bundle / "masks")
    capture = read_capture(SPOT / "capture")
    header = CaptureHeader(**{name: getattr(capture.document, name) for name in CaptureHeader.model_fields})
    write_capture(bundle, header, capture.frames)
    return StageInputs({**spot.folders, CAPTURE: bundle})


def run_stage(inputs: StageInputs, output: Path, **options: object) -> tuple[Dataset, mask.StageResult]:
    output.mkdir()
    result = mask.run(inputs, output, MaskConfig(resolution=192, **options), LogProgress())
    return Dataset.read(output / "dataset.json"), result


@pytest.fixture(scope="module")
def given(spot_with_masks: StageInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("given") / "mask"
    _, result = run_stage(spot_with_masks, output)
    assert result.metrics["masks_given"] == 12
    return output


def read(path: Path) -> UInt8:
    image: UInt8 = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return image


def test_dataset_lists_square_views_with_both_splits(given: Path) -> None:
    dataset = Dataset.read(given / "dataset.json")
    assert [frame.index for frame in dataset.frames] == FRAMES
    assert [frame.split for frame in dataset.frames].count("heldout") == 1
    assert max(dataset.object_size_unit) == 1
    assert min(frame.weight for frame in dataset.frames) > 0.9
    for frame in dataset.frames:
        assert read(given / frame.image).shape == (192, 192, 3)
        assert read(given / frame.mask).shape == (192, 192)


def test_the_dataset_hands_gains_on(given: Path) -> None:
    gains = [frame.gain for frame in Dataset.read(given / "dataset.json").frames]
    assert gains == [None, *((1.0, 0.5, 1.0 + index) for index in FRAMES[1:])]


def test_the_dataset_says_where_a_photo_ends(given: Path) -> None:
    """Some crops are wider than the photo: beyond it the border is repeated and there is no object."""
    frames = [frame for frame in Dataset.read(given / "dataset.json").frames if frame.photo.left > 0]
    assert frames
    for frame in frames:
        assert (frame.photo.top, frame.photo.bottom) == (0, 192)
        beyond = slice(0, int(frame.photo.left))
        assert not read(given / frame.mask)[:, beyond].any()
        image = read(given / frame.image)
        assert np.all(image[:, beyond] == image[:, [0]])
        assert np.any(image[:, beyond.stop + 1] != image[:, 0])


def test_the_meshs_silhouette_lies_on_the_masks(given: Path) -> None:
    """The true mesh's vertices, through the dataset's cameras, fill the masks up to their outline."""
    dataset = Dataset.read(given / "dataset.json")
    truth = json.loads((SPOT / "truth" / "poses.json").read_text())
    lines = [line.split() for line in (SPOT / "truth" / "mesh.obj").read_text().splitlines()]
    vertices = np.array([[float(x) for x in line[1:4]] for line in lines if line[0] == "v"])
    triangles = np.array([[int(part.split("/")[0]) - 1 for part in line[1:4]] for line in lines if line[0] == "f"])
    to_unit = np.linalg.inv(dataset.unit_to_reference) @ np.linalg.inv(truth["anchor_to_mesh_world"])
    points = vertices @ to_unit[:3, :3].T + to_unit[:3, 3]
    for frame in dataset.frames:
        camera = np.array(frame.camera_to_unit)
        x, y, z = ((points - camera[:3, 3]) @ camera[:3, :3]).T
        k = frame.intrinsics
        pixels = np.column_stack([k.cx - k.fx * x / z, k.cy + k.fy * y / z])
        drawn = np.zeros((768, 768), np.uint8)  # fillConvexPoly draws outlines too: fine pixels keep that small
        for triangle in np.rint((4 * pixels[triangles] - 0.5) * 16).astype(np.int32):
            cv2.fillConvexPoly(drawn, triangle, 255, shift=4)
        assert iou(cv2.resize(drawn, (192, 192), interpolation=cv2.INTER_AREA), read(given / frame.mask)) > 0.97


def test_masks_keep_their_soft_edge(given: Path) -> None:
    image = read(given / "masks" / "000002.png")
    assert np.count_nonzero((image > 20) & (image < 235)) > 100


def true_mask(frame: DatasetFrame, inputs: StageInputs) -> UInt8:
    """The truth's mask in the crop of `frame`, found from its intrinsics alone."""
    conditioned = ConditionedFrames.read(inputs["condition"] / "cameras.json")
    source = next(one for one in conditioned.frames if one.index == frame.index)
    scale = frame.intrinsics.fx / source.intrinsics.fx
    raw = read(SPOT / "truth" / "masks" / f"{frame.index:06d}.png")
    upright = condition.warp_image(
        raw, source.source, condition.TargetCamera(source.width, source.height, source.intrinsics.fx)
    )
    shift = [frame.intrinsics.cx - scale * source.intrinsics.cx, frame.intrinsics.cy - scale * source.intrinsics.cy]
    # warpAffine counts from the first pixel's centre.
    matrix = np.array([[scale, 0, shift[0] + scale / 2 - 0.5], [0, scale, shift[1] + scale / 2 - 0.5]])
    return np.asarray(cv2.warpAffine(upright, matrix, (192, 192), flags=cv2.INTER_LINEAR))


def test_crops_fit_the_object_and_lie_where_their_intrinsics_say(given: Path, spot_with_masks: StageInputs) -> None:
    dataset = Dataset.read(given / "dataset.json")
    for frame in dataset.frames:
        mask_here = read(given / frame.mask)
        assert iou(mask_here, true_mask(frame, spot_with_masks)) > 0.98
        rows, columns = np.nonzero(mask_here >= 128)
        assert max(np.ptp(rows), np.ptp(columns)) > 0.5 * 192
        assert min(rows.min(), columns.min(), 191 - rows.max(), 191 - columns.max()) > 2


def test_the_shipped_network_and_the_refiner_find_the_object(spot: StageInputs) -> None:
    figures = measure_masks(
        "spot", "u2netp", spot, SPOT / "truth" / "masks", MaskConfig(resolution=192), LogProgress()
    )  # fmt: skip
    assert (figures.views, figures.left_out, figures.refined) == (12, 0, True)
    assert figures.mean > 0.94
    assert figures.worst > 0.88


def test_the_measure_of_masks_finds_the_bad_one(spot_with_masks: StageInputs, tmp_path: Path) -> None:
    wrong = read(SPOT / "truth" / "masks" / "000012.png")
    wrong[: len(wrong) // 2] = 0  # half of the object is missing
    inputs = with_masks(spot_with_masks, tmp_path, {12: wrong})
    as_given, refined = (
        measure_masks(
            "spot", "user", inputs, SPOT / "truth" / "masks",
            MaskConfig(backend="user", resolution=192, refine=refine), LogProgress(),
        )
        for refine in (False, True)
    )  # fmt: skip
    assert (as_given.views, as_given.worst_frame, as_given.below_090) == (12, 12, [12])
    assert as_given.mean == pytest.approx((11 + as_given.worst) / 12, abs=0.01)
    assert as_given.worst < 0.8
    assert as_given.trust_correlation is None
    assert (refined.views, refined.left_out, refined.below_090) == (11, 1, [])


def test_the_contact_sheet_shows_every_view(given: Path) -> None:
    sheet = read(given / "contact_sheet.jpg")
    assert sheet.shape == (64 + 2 * 262 + 6, 7 * 238 + 6, 3)
    for row, column in ((row, column) for row in range(2) for column in range(7)):
        cell = sheet[64 + 262 * row :, 6 + 238 * column :][:232, :232]
        assert (cell.std() > 20) == (7 * row + column < 12)


def test_user_masks_are_asked_for_by_name(spot: StageInputs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"frame 2: the capture has no masks/000002\.png"):
        run_stage(spot, tmp_path / "mask", backend="user")


def with_masks(inputs: StageInputs, folder: Path, masks: dict[int, UInt8]) -> StageInputs:
    """The capture of `inputs` with some masks replaced."""
    bundle = folder / "capture"
    shutil.copytree(inputs[CAPTURE], bundle)
    for index, image in masks.items():
        cv2.imwrite(str(bundle / "masks" / f"{index:06d}.png"), image)
    return StageInputs({**inputs.folders, CAPTURE: bundle})


def test_empty_and_full_masks_are_left_out_and_named(spot_with_masks: StageInputs, tmp_path: Path) -> None:
    shape = read(SPOT / "truth" / "masks" / "000000.png").shape
    inputs = with_masks(spot_with_masks, tmp_path, {7: np.zeros(shape, np.uint8), 22: np.full(shape, 255, np.uint8)})
    dataset, result = run_stage(inputs, tmp_path / "mask")
    weights = {frame.index: frame.weight for frame in dataset.frames}
    assert [index for index, weight in weights.items() if weight == 0] == [7, 22]
    assert any("frame 7: left out: its mask is empty" in warning for warning in result.warnings)
    assert any("frame 22: left out: its mask fills the whole object box" in warning for warning in result.warnings)


def test_an_object_that_leaves_the_photo_is_named(spot_with_masks: StageInputs, tmp_path: Path) -> None:
    across = read(SPOT / "truth" / "masks" / "000007.png")
    columns = np.flatnonzero(across.max(0))
    across[:, columns[len(columns) // 3] : columns[2 * len(columns) // 3]] = 255  # from edge to edge
    _, result = run_stage(with_masks(spot_with_masks, tmp_path, {7: across}), tmp_path / "mask", refine=False)
    (warning,) = (text for text in result.warnings if "leaves the photo" in text)
    assert warning == "the object leaves the photo in frames 7: step back a little there"


def test_a_given_mask_that_contradicts_the_others_is_named_and_trusted_less(
    spot_with_masks: StageInputs, tmp_path: Path
) -> None:
    wrong = read(SPOT / "truth" / "masks" / "000012.png")
    wrong[: len(wrong) // 2] = 0  # half of the object is missing
    dataset, result = run_stage(with_masks(spot_with_masks, tmp_path, {12: wrong}), tmp_path / "mask")
    weights = {frame.index: frame.weight for frame in dataset.frames}
    assert weights[12] < 0.5
    assert min(weight for index, weight in weights.items() if index != 12) > 0.9
    assert any("frame 12: its mask disagreed with the other views; it was given" in text for text in result.warnings)


def corrections_in(folder: Path, masks: dict[int, tuple[UInt8, Intrinsics | None]]) -> Path:
    """A folder of corrected masks as the runner leaves it."""
    folder.mkdir()
    listed = []
    for frame, (image, square) in masks.items():
        cv2.imwrite(str(folder / "mask.png"), image)
        data = (folder / "mask.png").read_bytes()
        listed.append(
            CorrectedMask(frame=frame, size=len(data), sha256=hashlib.sha256(data).hexdigest(), intrinsics=square)
        )
        (folder / "mask.png").rename(folder / listed[-1].file)
    (folder / "masks.json").write_text(Corrections(masks=listed).model_dump_json())
    return folder


def test_corrected_masks_take_the_place_of_others(spot_with_masks: StageInputs, given: Path, tmp_path: Path) -> None:
    """Frame 12's own mask lacks its upper half; it is corrected on the photo. Frame 22 is corrected on its square."""
    wrong = read(SPOT / "truth" / "masks" / "000012.png")
    wrong[: len(wrong) // 2] = 0
    inputs = with_masks(spot_with_masks, tmp_path, {12: wrong, 22: np.zeros_like(wrong)})
    square = next(frame for frame in Dataset.read(given / "dataset.json").frames if frame.index == 22)
    corrections = corrections_in(
        tmp_path / "corrections",
        {
            12: (read(SPOT / "truth" / "masks" / "000012.png"), None),
            22: (read(given / square.mask), square.intrinsics),
        },
    )
    dataset, result = run_stage(StageInputs({**inputs.folders, CORRECTIONS: corrections}), tmp_path / "mask")
    assert result.metrics["masks_corrected"] == 2
    assert result.metrics["masks_given"] == 10
    assert not any("frame 12" in text or "frame 22" in text for text in result.warnings)
    for frame in dataset.frames:
        if frame.index in (12, 22):
            assert frame.weight == 1
            assert iou(read(tmp_path / "mask" / frame.mask), true_mask(frame, inputs)) > 0.97


def test_a_corrected_mask_of_another_size_is_refused(spot_with_masks: StageInputs, tmp_path: Path) -> None:
    corrections = corrections_in(tmp_path / "corrections", {12: (np.full((100, 90), 255, np.uint8), None)})
    inputs = StageInputs({**spot_with_masks.folders, CORRECTIONS: corrections})
    with pytest.raises(InputError, match=r"frame 12: its corrected mask has 90×100 pixels, the photo \d+×\d+; draw it"):
        run_stage(inputs, tmp_path / "mask")


@pytest.mark.parametrize(("failing", "by_colour"), [(12, 12), (5, 0)])
def test_where_a_network_finds_nothing_in_most_views_colours_do(
    failing: int, by_colour: int, spot: StageInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that answers every photo with nothing, or some of the twelve, in front of the real rest."""
    truths = iter([0] * failing + [1] * (12 - failing))
    answers: dict[bytes, int] = {}

    def blind(photo: UInt8, region: np.ndarray) -> np.ndarray:
        seeing = answers.setdefault(photo.tobytes(), next(truths, 1))
        return seeing * grabcut(photo, region)

    monkeypatch.setattr(masker, "u2netp", lambda: blind)
    run = (spot, tmp_path / "mask")
    if not by_colour:
        with pytest.raises(InputError, match="only 7 of 12 views have a usable mask"):
            run_stage(*run, refine=False)
        return
    dataset, result = run_stage(*run, refine=False)
    assert result.metrics["masks_by_colour"] == by_colour
    assert any("found the object in only 0 of 12 photos; in the others it was cut out by colour" in text
               for text in result.warnings)  # fmt: skip
    scores = [iou(read(tmp_path / "mask" / frame.mask), true_mask(frame, spot)) for frame in dataset.frames]
    assert np.median(scores) > 0.5
    with pytest.raises(InputError, match="only 0 of 12 views have a usable mask"):
        run_stage(spot, tmp_path / "network", refine=False, backend="network")


def test_excluded_frames_are_left_out_and_unknown_ones_refused(spot_with_masks: StageInputs, tmp_path: Path) -> None:
    dataset, _ = run_stage(spot_with_masks, tmp_path / "mask", exclude=(7, 57))
    assert [frame.index for frame in dataset.frames] == [i for i in FRAMES if i not in (7, 57)]
    with pytest.raises(ConfigError, match=r"mask\.exclude: no frames \[3, 99\]"):
        run_stage(spot_with_masks, tmp_path / "other", exclude=(3, 7, 99))


@pytest.mark.parametrize("box_given", [False, True])
def test_a_guessed_box_that_is_too_small_is_widened_and_a_given_one_kept_to(
    box_given: bool, spot_with_masks: StageInputs, given: Path, tmp_path: Path
) -> None:
    fitting = Dataset.read(given / "dataset.json")
    size = np.array(fitting.object_size_unit) * fitting.unit_to_reference[0][0]
    centre = np.array(fitting.unit_to_reference)[:3, 3]
    small = ObjectBox(center=centre.tolist(), size=(0.75 * size).tolist())
    shutil.copytree(spot_with_masks["condition"], tmp_path / "condition")
    conditioned = ConditionedFrames.read(tmp_path / "condition" / "cameras.json")
    conditioned.model_copy(update={"object": small if box_given else None}).write(
        tmp_path / "condition" / "cameras.json"
    )
    posed_by_truth(conditioned, small).write(tmp_path / "poses.json")
    inputs = StageInputs({**spot_with_masks.folders, "condition": tmp_path / "condition", "refine_poses": tmp_path})
    dataset, _ = run_stage(inputs, tmp_path / "mask")
    found = np.array(dataset.object_size_unit) * dataset.unit_to_reference[0][0]
    if box_given:
        assert np.all(found < 0.9 * size)
    else:
        assert found == pytest.approx(size, rel=0.08)
        assert np.array(dataset.unit_to_reference)[:3, 3] == pytest.approx(centre, abs=0.01)


def test_llff_is_written_when_asked_for(spot_with_masks: StageInputs, tmp_path: Path) -> None:
    run_stage(spot_with_masks, tmp_path / "mask", llff=True)
    assert np.load(tmp_path / "mask" / "llff" / "poses_bounds.npy").shape == (12, 17)
    assert len(list((tmp_path / "mask" / "llff" / "images").iterdir())) == 12
    assert len(json.loads((tmp_path / "mask" / "transforms.json").read_text())["frames"]) == 12


def test_without_the_refiner_the_capture_s_own_box_stays(spot_with_masks: StageInputs, tmp_path: Path) -> None:
    dataset, _ = run_stage(spot_with_masks, tmp_path / "mask", refine=False)
    box = read_capture(SPOT / "capture").document.object
    assert box is not None
    assert np.array(dataset.unit_to_reference)[:3, 3] == pytest.approx(box.center)
    assert dataset.unit_to_reference[0][0] == pytest.approx(max(box.size))


def test_too_few_masked_views_are_refused_with_every_reason(spot_with_masks: StageInputs, tmp_path: Path) -> None:
    empty = np.zeros(read(SPOT / "truth" / "masks" / "000000.png").shape, np.uint8)
    inputs = with_masks(spot_with_masks, tmp_path, dict.fromkeys(FRAMES[:6], empty))
    with pytest.raises(InputError, match="only 6 of 12 views have a usable mask, at least 8") as error:
        run_stage(inputs, tmp_path / "mask")
    assert len(error.value.reasons) == 7


def test_a_box_out_of_sight_is_refused(spot_with_masks: StageInputs, tmp_path: Path) -> None:
    conditioned = ConditionedFrames.read(spot_with_masks["condition"] / "cameras.json")
    far = ObjectBox(center=[0.0, 40.0, 0.0], size=[0.1, 0.1, 0.1])
    posed_by_truth(conditioned, far).write(tmp_path / "poses.json")
    inputs = StageInputs({**spot_with_masks.folders, "refine_poses": tmp_path})
    with pytest.raises(InputError, match=r"the object box is (behind or inside|outside the view of) its camera"):
        run_stage(inputs, tmp_path / "mask")


@pytest.mark.parametrize(("count", "every", "held"), [(12, 8, 1), (60, 8, 7), (9, 0, 0), (1, 8, 0), (10, 1, 5)])
def test_heldout_views_are_spread_and_never_all(count: int, every: int, held: int) -> None:
    split = mask.heldout_views(count, every)
    assert len(split) == count
    assert sum(split) == held
    gaps = np.diff(np.flatnonzero(split))
    assert len(set(gaps.tolist())) <= 1


def test_only_the_largest_part_inside_the_box_stays() -> None:
    soft = np.zeros((100, 100), np.uint8)
    soft[20:50, 20:50] = 255
    soft[19, 20:50] = 90  # a soft edge
    soft[70:80, 70:80] = 255  # a smaller part
    soft[60:100, :15] = 255  # larger than that, but outside the box
    region = np.zeros((100, 100), bool)
    region[5:95, 15:95] = True
    kept = largest_component(soft, region)
    expected = np.zeros_like(soft)
    expected[19:50, 20:50] = soft[19:50, 20:50]
    assert np.array_equal(kept, expected)
    assert not largest_component(np.full((9, 9), 100, np.uint8), np.ones((9, 9), bool)).any()


def test_an_object_cut_by_the_photos_edge_is_noticed() -> None:
    square = np.zeros((100, 100), np.uint8)
    square[30:70, 30:70] = 255
    side = 40 / 156  # one side of the outline
    for crop, share in ((Crop(0, 0, 100), 0), (Crop(230, 0, 100), side), (Crop(-30, 130, 100), 2 * side)):
        photo = np.zeros((100, 100), bool)
        photo[whole_pixels(photo_rectangle(crop, 300, 200, 100))] = True
        cut = cut_share(square, photo)
        assert cut == pytest.approx(share, abs=0.03)
    assert cut_share(np.zeros((9, 9), np.uint8), np.ones((9, 9), bool)) == 0


def test_networks_are_refused_with_the_reason(tmp_path: Path) -> None:
    broken = tmp_path / "net.onnx"
    broken.write_bytes(b"not a network")
    with pytest.raises(InputError, match="is not an ONNX network"):
        network(str(broken), None, "isnet")
    with pytest.raises(ConfigError, match=r"mask\.network_sha256: .* has SHA-256 [0-9a-f]{64}, not 0000"):
        network(str(broken), "0" * 64, "isnet")
    with pytest.raises(ConfigError, match=r"mask\.network: .*absent\.onnx: no such file"):
        network(str(tmp_path / "absent.onnx"), None, "isnet")


def test_a_network_by_path_is_the_same_as_shipped() -> None:
    weights = Path(mask.__file__).parent / "weights" / "u2netp.onnx"
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    photo = np.zeros((90, 140, 3), np.uint8)
    cv2.circle(photo, (70, 45), 30, (230, 80, 40), -1)
    everywhere = np.ones(photo.shape[:2], bool)
    saliency = u2netp()(photo, everywhere)
    assert saliency.shape == (90, 140)
    assert saliency.min() >= 0
    assert saliency.max() <= 1
    assert saliency[45, 70] > 0.8
    assert saliency[5, 5] < 0.2
    assert np.array_equal(network(str(weights), sha256, "u2net")(photo, everywhere), saliency)


@pytest.mark.parametrize(
    ("name", "pixel", "expected"),
    [
        ("isnet", 255, (255 - 128) / 256),  # (x - 128) / 256
        ("isnet", 0, -0.5),
        ("imagenet", 255, (1 - 0.485) / 0.229),
        ("u2net", 100, (1 - 0.485) / 0.229),  # divided by the photo's own maximum
    ],
)
def test_pixels_are_normalised_as_each_family_of_networks_was_trained(name: str, pixel: int, expected: float) -> None:
    photo = np.full((4, 6, 3), pixel, np.uint8)
    tensor = NORMALISATIONS[name].tensor(photo)
    assert tensor.shape == (1, 3, 4, 6)
    assert tensor.dtype == np.float32
    assert tensor[0, 0, 0, 0] == pytest.approx(expected, abs=1e-6)


def mean_of_channels(path: Path) -> Path:
    """Write the smallest ONNX network that OnnxBackend runs: (1, 3, any, any) to the mean of the channels."""

    def field(number: int, value: int | bytes | str) -> bytes:  # protobuf: all numbers and lengths here are below 128
        if isinstance(value, int):
            return (
                bytes([number << 3, value]) if number < 16 else bytes([number << 3 & 0x7F | 0x80, number >> 4, value])
            )
        data = value.encode() if isinstance(value, str) else value
        return bytes([number << 3 | 2, len(data)]) + data

    def tensor(name: str, *dims: int | str) -> bytes:
        shape = b"".join(field(1, field(2 if isinstance(dim, str) else 1, dim)) for dim in dims)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))

    axes = field(1, "axes") + field(8, 1) + field(20, 7)  # ReduceMean over axis 1, which it keeps
    node = field(1, "x") + field(2, "y") + field(4, "ReduceMean") + field(5, axes)
    graph = (
        field(1, node) + field(2, "g") + field(11, tensor("x", 1, 3, "h", "w")) + field(12, tensor("y", 1, 1, "h", "w"))
    )
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13)))
    return path


@pytest.mark.parametrize("family", ["imagenet", "birefnet"])
def test_logits_become_probabilities_and_an_open_size_the_familys(family: str, tmp_path: Path) -> None:
    """A network that gives back its input's brightness, on a photo of three grey stripes."""
    photo = np.zeros((60, 90, 3), np.uint8)
    photo[20:40], photo[40:] = 90, 255
    expected = ((np.array([0, 90, 255]) / 255)[:, None] - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected = expected.mean(1)
    if family == "birefnet":
        expected = 1 / (1 + np.exp(-expected))
    expected = (expected - expected[0]) / (expected[2] - expected[0])
    backend = network(str(mean_of_channels(tmp_path / "mean.onnx")), None, family)
    found = backend(photo, np.ones((60, 90), bool))
    assert found[[10, 30, 50], 45] == pytest.approx(expected, abs=1e-5)


def test_grabcut_finds_what_differs_from_the_surroundings() -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(60, 90, (120, 160, 3), np.uint8)
    truth = np.zeros((120, 160), np.uint8)
    cv2.ellipse(truth, (80, 60), (35, 22), 20, 0, 360, 255, -1)
    photo[truth > 0] += np.array([120, 40, 0], np.uint8)
    region = np.zeros(truth.shape, bool)
    region[25:95, 35:125] = True
    assert iou(np.uint8(255 * grabcut(photo, region)), truth) > 0.95
    assert not grabcut(photo, np.zeros_like(region)).any()

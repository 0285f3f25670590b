"""The validate stage on right and wrong captures: each fault has its own message, and none is a crash."""

import json
import shutil
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from preprocessing.validate import inspect_pixels, intrinsics_fault, run
from scan2twin.capture.models import Anchor, CaptureHeader, FrameRecord, Intrinsics, Pose, TrackedAnchor
from scan2twin.capture.reader import read_capture
from scan2twin.capture.writer import write_capture
from scan2twin.config import ValidateConfig
from scan2twin.errors import CaptureError
from scan2twin.frames import Validation
from scan2twin.progress import LogProgress
from scan2twin.stages import CAPTURE, StageInputs, StageResult

SPOT = Path(__file__).parents[1] / "data/spot-capture/capture"


def validate(folder: Path, outputs: Path, **config: int) -> tuple[StageResult, Validation]:
    result = run(StageInputs({CAPTURE: folder}), outputs, ValidateConfig(**config), LogProgress())
    return result, Validation.read(outputs / "validation.json")


def rewrite(folder: Path, frames: list[FrameRecord] | None = None, **header: object) -> None:
    """Write the bundle again, with other frames, other header values, or other files in its folder."""
    capture = read_capture(folder)
    values = {name: getattr(capture.document, name) for name in CaptureHeader.model_fields}
    write_capture(folder, CaptureHeader(**(values | header)), capture.frames if frames is None else frames)


def change_frame(folder: Path, i: int, **values: object) -> None:
    frames = list(read_capture(folder).frames)
    frames[i] = frames[i].model_copy(update=values)
    rewrite(folder, frames)


def test_a_phone_capture_passes_whole(tmp_path):
    result, validation = validate(SPOT, tmp_path)
    assert validation.usable == list(range(60))
    assert validation.unusable == []
    assert result.metrics == {"frames": 60, "usable": 60, "unusable": 0}


def test_lost_untracked_and_anchorless_frames_are_left_out_and_named(make_capture, tmp_path):
    folder = make_capture(frames=13)
    anchor = read_capture(folder).frames[0].anchor
    change_frame(folder, 0, tracking="lost")
    change_frame(folder, 1, anchor=None)
    change_frame(folder, 2, anchor=anchor.model_copy(update={"tracked": False}))
    change_frame(folder, 8, tracking="limited")  # kept: pose compensation weighs it
    result, validation = validate(folder, tmp_path)
    assert [frame.index for frame in validation.unusable] == [0, 1, 2]
    assert validation.usable == list(range(3, 13))
    assert list(result.warnings) == validation.warnings
    assert validation.warnings[0] == "frame 0 is left out: tracking was lost, so its pose means nothing"
    assert "no pose of the reference anchor 'a0'" in validation.warnings[1]
    assert "'a0' was not tracked" in validation.warnings[2]


def test_short_gaps_in_tracking_are_left_to_pose_compensation(make_capture, tmp_path):
    folder = make_capture(frames=16)
    for row in (3, 4, 7, 8, 9, 10):
        change_frame(folder, row, tracking="lost")
    _, validation = validate(folder, tmp_path)
    assert [frame.index for frame in validation.unusable] == [7, 8, 9, 10]  # four in a row are too many


def test_a_support_anchor_serves_where_the_reference_anchor_is_not_tracked(make_capture, tmp_path):
    folder = make_capture(frames=12)
    still = Pose(p=[0.0] * 3, q=[0.0, 0.0, 0.0, 1.0])
    anchors = [
        *read_capture(folder).document.anchors,
        Anchor(id="s", role="support", pose_first=still, pose_last=still),
    ]
    rewrite(folder, anchors=anchors)
    change_frame(folder, 0, anchor=None, support=[TrackedAnchor(id="s", tracked=True, p=still.p, q=still.q)])
    assert validate(folder, tmp_path)[1].unusable == []


def test_without_a_reference_anchor_frames_need_none(make_capture, tmp_path):
    folder = make_capture()
    frames = [frame.model_copy(update={"anchor": None}) for frame in read_capture(folder).frames]
    rewrite(folder, frames, reference_anchor=None)
    assert validate(folder, tmp_path)[1].unusable == []


def test_frames_of_the_object_turned_over_are_used(make_capture, tmp_path):
    folder = make_capture(frames=12)
    first = read_capture(folder).document.anchors[0]
    rewrite(folder, anchors=[first, first.model_copy(update={"id": "turned"})])
    change_frame(folder, 11, anchor=TrackedAnchor(id="turned", tracked=True, p=first.pose_last.p, q=first.pose_last.q))
    result, validation = validate(folder, tmp_path)
    assert validation.usable == list(range(12))
    assert result.warnings == []


def test_plain_photos_need_no_poses_but_must_differ(make_capture, tmp_path):
    folder = make_capture(frames=10)
    shutil.copy(folder / "images/000000.jpg", folder / "images/000009.jpg")
    unknown = {"pose_world": None, "intrinsics": None, "anchor": None, "tracking": "lost"}
    frames = [frame.model_copy(update=unknown) for frame in read_capture(folder).frames]
    rewrite(folder, frames, reference_anchor=None, anchors=[])
    result, validation = validate(folder, tmp_path)
    assert validation.usable == list(range(9))
    assert any("the same image" in warning for warning in result.warnings)


def test_black_and_repeated_images_are_left_out_and_named(make_capture, tmp_path):
    folder = make_capture()
    noise = np.random.default_rng(1).integers(0, 8, (64, 48, 3), dtype=np.uint8)  # a covered lens is not quite black
    Image.fromarray(noise).save(folder / "images/000003.jpg")
    (folder / "images/000005.jpg").write_bytes((folder / "images/000004.jpg").read_bytes())
    rewrite(folder)
    _, validation = validate(folder, tmp_path)
    assert [frame.index for frame in validation.unusable] == [3, 5]
    assert "its image is black" in validation.warnings[0]
    assert "images/000005.jpg is the same image as frame 4's" in validation.warnings[1]


def test_a_blown_out_image_is_left_out_and_a_bright_background_is_not(make_capture, tmp_path):
    folder = make_capture()
    Image.new("RGB", (48, 64), (255, 255, 253)).save(folder / "images/000003.jpg")
    sweep = Image.new("RGB", (48, 64), "white")
    sweep.paste((180, 120, 60), (16, 16, 32, 32))
    sweep.save(folder / "images/000005.jpg")
    rewrite(folder)
    _, validation = validate(folder, tmp_path)
    assert [frame.index for frame in validation.unusable] == [3]
    assert "its image is white" in validation.warnings[0]


def test_images_of_other_kinds_pass_and_each_wrong_size_is_named(make_capture, tmp_path):
    folder = make_capture()
    frames = list(read_capture(folder).frames)
    rng = np.random.default_rng(3)
    for i, suffix in ((3, "heic"), (5, "png")):
        (folder / frames[i].file).unlink()
        frames[i] = frames[i].model_copy(update={"file": f"images/{i:06d}.{suffix}"})
    heic = pillow_heif.from_pillow(Image.fromarray(rng.integers(40, 255, (64, 48, 3), dtype=np.uint8)))
    heic.save(folder / frames[3].file, quality=90)
    # 16-bit grey around mid level: cut off at 255 it would be white all over.
    Image.fromarray(rng.integers(20_000, 40_000, (64, 48), dtype=np.uint16)).save(folder / frames[5].file)
    rewrite(folder, frames)
    assert read_capture(folder).document.version == "1.1"
    assert validate(folder, tmp_path)[1].unusable == []

    for i in (1, 3):
        Image.new("RGB", (64, 48)).save(folder / frames[i].file)
    rewrite(folder)
    with pytest.raises(CaptureError) as caught:
        validate(folder, tmp_path)
    assert [reason.split(" pixels, but frames.jsonl states ")[0] for reason in caught.value.reasons] == [
        "images/000001.jpg: 64 × 48", "images/000003.heic: 64 × 48",
    ]  # fmt: skip


def test_a_dark_scene_with_a_light_in_it_is_not_black(make_capture, tmp_path):
    folder = make_capture()
    pixels = np.zeros((64, 48, 3), np.uint8)
    pixels[10:30, 10:30] = 60
    Image.fromarray(pixels).save(folder / "images/000003.jpg")
    rewrite(folder)
    assert validate(folder, tmp_path)[1].unusable == []


def test_too_few_usable_frames_is_refused_with_each_frame_named(make_capture, tmp_path):
    folder = make_capture(frames=9)
    change_frame(folder, 0, tracking="lost")
    change_frame(folder, 1, tracking="lost")
    with pytest.raises(CaptureError) as caught:
        validate(folder, tmp_path)
    assert caught.value.reasons[0].startswith("7 of 9 frames can be used, at least 8 are needed")
    assert len(caught.value.reasons) == 3
    assert list(tmp_path.glob("*.json")) == []
    assert validate(folder, tmp_path, min_frames=7)[1].usable == list(range(2, 9))


@pytest.mark.parametrize(
    ("intrinsics", "reason"),
    [
        ({"fx": 60, "fy": 60, "cx": 70, "cy": 32}, r"principal point \(70, 32\) lies outside the image of 48 × 64"),
        ({"fx": 1.2, "fy": 1.2, "cx": 24, "cy": 32}, r"fx = 1\.2 px means a field of view of 174°"),
        ({"fx": 60, "fy": 6000, "cx": 24, "cy": 32}, r"fy = 6000 px means a field of view of 1°"),
    ],
)
def test_impossible_intrinsics(make_capture, tmp_path, intrinsics, reason):
    folder = make_capture()
    change_frame(folder, 3, intrinsics=Intrinsics(**intrinsics))
    with pytest.raises(CaptureError, match=reason):
        validate(folder, tmp_path, min_frames=10)


def test_a_phone_s_intrinsics_are_possible():
    assert intrinsics_fault(Intrinsics(fx=2900.0, fy=2900.0, cx=2010.0, cy=1505.0), 4000, 3000) is None


class TestImages:
    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.98])
    @pytest.mark.parametrize("progressive", [False, True])
    def test_a_cut_off_jpeg(self, make_capture, tmp_path, kept, progressive):
        folder = make_capture()
        path = folder / "images/000003.jpg"
        Image.open(path).save(path, progressive=progressive)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
        rewrite(folder)
        with pytest.raises(CaptureError, match=r"images/000003\.jpg: (cannot be decoded .*cut off|not a JPEG)"):
            validate(folder, tmp_path)

    def test_a_cut_off_png(self, make_capture, tmp_path):
        folder = make_capture()
        path = folder / "images/000003.png"
        Image.open(folder / "images/000003.jpg").save(path)
        path.write_bytes(path.read_bytes()[:-2000])
        frames = list(read_capture(folder).frames)
        frames[3] = frames[3].model_copy(update={"file": "images/000003.png"})
        (folder / "images/000003.jpg").unlink()
        write_capture(folder, read_capture(folder).document, frames)
        with pytest.raises(CaptureError, match=r"images/000003\.png: cannot be decoded"):
            validate(folder, tmp_path)

    def test_another_size_than_stated(self, make_capture, tmp_path):
        folder = make_capture()
        Image.new("RGB", (64, 48), "red").save(folder / "images/000003.jpg")
        rewrite(folder)
        with pytest.raises(
            CaptureError, match=r"images/000003\.jpg: 64 × 48 pixels, but .* states 48 × 64 for frame 3"
        ):
            validate(folder, tmp_path)

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    @pytest.mark.parametrize("side", [10_000, 20_000])
    def test_100_and_400_mp_are_refused_from_the_header(self, make_capture, tmp_path, side):
        folder = make_capture()
        Image.new("1", (side, side)).save(folder / "images/big.png")
        capture = read_capture(folder)
        frame = capture.frames[0].model_copy(update={"file": "images/big.png"})
        assert any("over the limit of 64 MP" in fault for fault in inspect_pixels(capture, frame).faults)

    def test_not_an_image_and_other_formats(self, make_capture, tmp_path):
        folder = make_capture()
        (folder / "images/000003.jpg").write_bytes(b"GIF89a" + bytes(100))
        Image.new("RGB", (48, 64)).save(folder / "images/000004.jpg", format="TIFF")
        Image.new("CMYK", (48, 64)).save(folder / "images/000005.jpg")
        rewrite(folder)
        with pytest.raises(CaptureError) as caught:
            validate(folder, tmp_path)
        assert "images/000003.jpg: not a JPEG, PNG or HEIC" in caught.value.reasons[0]
        assert "images/000004.jpg: not a JPEG, PNG or HEIC" in caught.value.reasons[1]
        assert "images/000005.jpg: pixel format CMYK" in caught.value.reasons[2]

    def test_masks_and_depth_are_checked_too(self, make_capture, tmp_path):
        folder = make_capture()
        for name in ("masks", "depth"):
            (folder / name).mkdir()
        Image.new("L", (48, 64), 255).save(folder / "masks/000001.png")
        Image.fromarray(np.full((64, 48), 500, np.uint16)).save(folder / "depth/000001.png")
        rewrite(folder)
        assert validate(folder, tmp_path)[1].unusable == []
        Image.new("RGB", (48, 64)).save(folder / "masks/000002.png")
        Image.new("L", (48, 64)).save(folder / "depth/000002.png")
        Image.new("L", (24, 32)).save(folder / "masks/000003.png")
        rewrite(folder)
        with pytest.raises(CaptureError) as caught:
            validate(folder, tmp_path)
        assert [reason.split(":")[0] for reason in caught.value.reasons] == [
            "masks/000002.png", "depth/000002.png", "masks/000003.png",
        ]  # fmt: skip


def test_faults_of_documents_files_and_pixels_come_together(make_capture, tmp_path):
    folder = make_capture()
    Image.new("RGB", (64, 48), "red").save(folder / "images/000003.jpg")
    rewrite(folder)
    (folder / "images/000005.jpg").write_bytes(b"cut")
    (folder / "images/extra.jpg").write_bytes(b"")
    with pytest.raises(CaptureError) as caught:
        validate(folder, tmp_path)
    text = str(caught.value)
    assert "'images/extra.jpg': in the folder but not in the list" in text
    assert "images/000005.jpg: 3 bytes" in text
    assert "images/000003.jpg: 64 × 48" in text


def test_a_linked_image_is_not_opened(make_capture, tmp_path):
    folder = make_capture()
    (folder / "images/000003.jpg").unlink()
    (folder / "images/000003.jpg").symlink_to("/dev/zero")  # would be read for ever
    with pytest.raises(CaptureError, match="is a link"):
        validate(folder, tmp_path)


def test_equal_times_and_unknown_scale_are_warnings(make_capture, tmp_path):
    folder = make_capture()
    change_frame(folder, 3, t=1.0)
    document = json.loads((folder / "capture.json").read_text())
    document["scale"]["metric"] = False
    (folder / "capture.json").write_text(json.dumps(document))
    result, _ = validate(folder, tmp_path)
    assert [warning.split(";")[0] for warning in result.warnings] == [
        "frames with the same time as the frame before them: 1",
        "the capture has no metric scale: the model's size will not be in true metres",
    ]

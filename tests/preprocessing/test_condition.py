"""The condition stage: where pixels go, checked against OpenCV's projection; what images look like after."""

import io
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from scipy.spatial.transform import Rotation

from preprocessing.condition import (
    TargetCamera,
    camera_matrix,
    new_camera,
    raw_to_target,
    run,
    upright_pose,
    upright_quarters,
    warp_image,
)
from preprocessing.frame_selection import relative_sharpness
from preprocessing.images import linear_to_srgb, read_alpha, read_photo, shrink, srgb_to_linear
from preprocessing.parallel import map_frames, usable_cores
from scan2twin.capture.models import (
    App,
    CameraSettings,
    CaptureHeader,
    Device,
    Distortion,
    FrameRecord,
    Intrinsics,
    Pose,
    Scale,
)
from scan2twin.capture.reader import read_capture
from scan2twin.capture.writer import write_capture
from scan2twin.config import ConditionConfig
from scan2twin.errors import CaptureError
from scan2twin.frames import ConditionedFrames, SourceCamera, Validation
from scan2twin.progress import LogProgress
from scan2twin.stages import CAPTURE, StageInputs

SPOT = Path(__file__).parents[1] / "data" / "spot-capture" / "capture"
LENS = [0.12, -0.25, 0.002, -0.001, 0.08]  # a phone's main camera, exaggerated
OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0])

# What EXIF says of each orientation: the stored raster as a function of the upright one (EXIF 2.32, tag 0x0112).
STORED_OF_UPRIGHT = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


def source_camera(**changes: object) -> SourceCamera:
    values = {
        "width": 640, "height": 480, "intrinsics": Intrinsics(fx=510.0, fy=505.0, cx=331.5, cy=228.25),
        "distortion": LENS,
    }  # fmt: skip
    return SourceCamera.model_validate({**values, **changes})


def points_in_view(count: int = 200, seed: int = 0) -> np.ndarray:
    """Camera-frame points (OpenCV axes), inside the view of `source_camera`."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(0.5, 3, count)
    return np.column_stack([rng.uniform(-0.4, 0.4, count) * z, rng.uniform(-0.3, 0.3, count) * z, z])


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("distortion", [[], LENS])
def test_points_project_to_where_the_pixels_went(distortion: list[float], quarters: int) -> None:
    source = source_camera(distortion=distortion, rotation_quarters=quarters)
    target = new_camera(source, 300)
    pose = Pose(p=[0.3, -0.2, 1.0], q=Rotation.from_euler("xyz", [20, 140, -10], degrees=True).as_quat().tolist())
    world = Rotation.from_quat(pose.q).apply(points_in_view() @ OPENGL_TO_OPENCV) + pose.p

    raw = cv2.projectPoints(
        points_in_view(), np.zeros(3), np.zeros(3), camera_matrix(source.intrinsics), np.array(distortion)
    )[0].reshape(-1, 2)
    upright = upright_pose(pose, quarters)
    in_camera = Rotation.from_quat(upright.q).inv().apply(world - upright.p) @ OPENGL_TO_OPENCV
    expected = in_camera[:, :2] / in_camera[:, 2:] * target.focal + [target.width / 2, target.height / 2]

    assert np.abs(raw_to_target(raw + 0.5, source, target) - expected).max() < 0.01


def smooth_photo(width: int, height: int) -> np.ndarray:
    """A picture whose red and green tell the position, so that a warped pixel says where it came from."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    return np.stack([40 + 180 * x / width, 40 + 180 * y / height, np.full_like(x, 90)], -1).round().astype(np.uint8)


@pytest.mark.parametrize("long_side", [640, 250])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarters", range(4))
def test_pixels_land_where_the_camera_model_says(quarters: int, mirrored: bool, long_side: int) -> None:
    source = source_camera(rotation_quarters=quarters, mirrored=mirrored)
    target = new_camera(source, long_side)
    warped = warp_image(smooth_photo(source.width, source.height), source, target)
    assert warped.shape == (target.height, target.width, 3)

    raw = np.random.default_rng(1).uniform(0.1, 0.9, (300, 2)) * [source.width, source.height]
    landed = raw_to_target(raw, source, target)
    colour = cv2.remap(warped.astype(np.float32), *np.float32(landed - 0.5).T[..., None], cv2.INTER_LINEAR)[:, 0]
    found = (colour[:, :2] - 40) / 180 * [source.width, source.height]
    # 8-bit steps of the gradient are 3.6 pixels wide, so single points are that coarse; their mean is not.
    assert np.abs(found - raw).max() < 4
    assert np.abs((found - raw).mean(0)).max() < 0.3


def test_undistorted_dots_land_within_a_twentieth_of_a_pixel() -> None:
    """Blurred dots drawn at raw positions: their centroids after the warp against cv2.projectPoints' inverse."""
    source = source_camera()
    target = new_camera(source, 640)
    dots = np.stack(np.meshgrid(np.linspace(60, 580, 9), np.linspace(60, 420, 7)), -1).reshape(-1, 2) + 0.37
    y, x = np.mgrid[0 : source.height, 0 : source.width] + 0.5
    raw = sum(np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 2.5**2)) for u, v in dots)
    warped = warp_image(np.uint8(np.rint(250 * raw)), source, target).astype(np.float64)
    for u, v in raw_to_target(dots, source, target):
        row, column = int(v) - 9, int(u) - 9
        patch = warped[row : row + 19, column : column + 19]
        rows, columns = np.mgrid[row : row + 19, column : column + 19] + 0.5
        centroid = [(patch * columns).sum() / patch.sum(), (patch * rows).sum() / patch.sum()]
        assert np.abs(np.array(centroid) - [u, v]).max() < 0.05


@settings(deadline=None, max_examples=60)
@given(
    cx=st.floats(280, 360), cy=st.floats(200, 280), fx=st.floats(450, 900), aspect=st.floats(0.97, 1.03),
    k1=st.floats(-0.1, 0.15), long_side=st.integers(128, 1000), quarters=st.integers(0, 3),
)  # fmt: skip
def test_the_new_image_is_filled_centred_and_never_enlarged(
    cx: float, cy: float, fx: float, aspect: float, k1: float, long_side: int, quarters: int
) -> None:
    source = source_camera(
        intrinsics=Intrinsics(fx=fx, fy=fx * aspect, cx=cx, cy=cy), distortion=[k1, 0.0, 0.0, 0.0],
        rotation_quarters=quarters,
    )  # fmt: skip
    target = new_camera(source, long_side)
    assert max(target.width, target.height) <= long_side
    assert target.focal <= min(fx, fx * aspect) * (1 + 1e-9)
    # Every border pixel of the new image comes from inside the raw one.
    w, h = target.width, target.height
    along = np.linspace(0, 1, 20)
    edge = np.concatenate(
        [
            np.column_stack(side)
            for side in (
                (along * w, 0 * along),
                (along * w, 0 * along + h),
                (0 * along, along * h),
                (0 * along + w, along * h),
            )
        ]
    )
    rays = np.column_stack([(edge - [w / 2, h / 2]) / target.focal, np.ones(len(edge))])
    unturned = rays @ Rotation.from_euler("z", -90 * quarters, degrees=True).as_matrix()
    raw = (
        cv2.projectPoints(
            unturned, np.zeros(3), np.zeros(3), camera_matrix(source.intrinsics), np.array(source.distortion)
        )[0].reshape(-1, 2)
        + 0.5
    )
    assert raw.min() > -0.5
    assert (raw - [source.width, source.height]).max() < 0.5


def test_a_camera_that_needs_nothing_done_keeps_its_pixels() -> None:
    source = source_camera(intrinsics=Intrinsics(fx=500, fy=500, cx=320, cy=240), distortion=[])
    target = new_camera(source, 1280)
    photo = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    assert target == TargetCamera(640, 480, 500)
    assert np.array_equal(warp_image(photo, source, target), photo)


@pytest.mark.parametrize(
    "changes",
    [
        {"intrinsics": Intrinsics(fx=500, fy=500, cx=30, cy=240)},
        {"intrinsics": Intrinsics(fx=500, fy=500, cx=900, cy=240)},
        {"distortion": [-1.5, 0.0, 0.0, 0.0]},
    ],
)
def test_impossible_cameras_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(CaptureError, match="do not fit an image of 640×480"):
        new_camera(source_camera(**changes), 640)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(orientation: int, tmp_path: Path) -> None:
    upright = np.zeros((60, 80, 3), np.uint8)
    upright[:30, :40] = [250, 40, 40]
    upright[:30, 40:] = [40, 250, 40]
    upright[30:, :40] = [40, 40, 250]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED_OF_UPRIGHT[orientation](upright))
    Image.fromarray(stored).save(tmp_path / "photo.png", exif=exif)
    output = condition_one(tmp_path, stored.shape, q=[0.0, 0.0, 0.0, 1.0])
    image = np.asarray(Image.open(output / "images" / "000000.jpg"))
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).mean() < 3


def condition_one(folder: Path, shape: tuple[int, ...], q: list[float], capture: str = "photo.png") -> Path:
    """Run the stage on one image; returns its output folder."""
    bundle, validated, output = folder / "capture", folder / "validate", folder / "out"
    (bundle / "images").mkdir(parents=True)
    validated.mkdir()
    output.mkdir()
    shutil.copy(folder / capture, bundle / "images" / capture)
    height, width = shape[:2]
    record = FrameRecord(
        i=0, file=f"images/{capture}", t=0.0, width=width, height=height, anchor=None, tracking="normal",
        intrinsics=Intrinsics(fx=90.0, fy=90.0, cx=width / 2, cy=height / 2), pose_world=Pose(p=[0.0, 0.0, 0.0], q=q),
    )  # fmt: skip
    header = CaptureHeader(
        capture_id="one-photo", name="one", recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
        app=App(name="t", version="1"),
        device=Device(model="m", platform="p", tracker="arcore"), scale=Scale(metric=True, source="arcore"),
    )  # fmt: skip
    write_capture(bundle, header, [record])
    Validation(capture_id="one-photo", frame_count=1, usable=[0], unusable=[], warnings=[]).write(
        validated / "validation.json"
    )
    run(StageInputs({CAPTURE: bundle, "validate": validated}), output, ConditionConfig(), LogProgress())
    return output


@pytest.mark.parametrize("quarters", range(4))
def test_without_exif_gravity_turns_the_image_upright(quarters: int, tmp_path: Path) -> None:
    """A phone held sideways: the sensor's raster is turned, its pose says so, and no EXIF tag does."""
    held = Rotation.from_euler("YX", [70, -25], degrees=True) * Rotation.from_euler("z", 90 * quarters, degrees=True)
    pose = Pose(p=[0.0, 0.0, 0.0], q=held.as_quat().tolist())
    assert upright_quarters(pose) == quarters
    up = Rotation.from_quat(upright_pose(pose, quarters).q).inv().apply([0, 1, 0])
    assert up[1] > 0.9
    assert abs(up[0]) < 1e-9
    stored = np.zeros((60, 80, 3), np.uint8)
    Image.fromarray(stored).save(tmp_path / "photo.png")
    document = ConditionedFrames.read(condition_one(tmp_path, stored.shape, pose.q) / "cameras.json")
    assert document.frames[0].source.rotation_quarters == quarters


def test_gravity_says_nothing_when_the_camera_looks_straight_down() -> None:
    down = Rotation.from_euler("x", -85, degrees=True) * Rotation.from_euler("z", 90, degrees=True)
    assert upright_quarters(Pose(p=[0.0, 0.0, 0.0], q=down.as_quat().tolist())) == 0


def test_srgb_matches_the_standard_and_its_own_inverse() -> None:
    # IEC 61966-2-1: mid grey 0.5 encodes 0.2140 of linear light; the two pieces meet at 0.04045.
    assert srgb_to_linear(np.array([0.5]))[0] == pytest.approx(0.21404, abs=1e-5)
    assert np.diff(srgb_to_linear(np.array([0.04045, 0.040451])))[0] < 1e-6
    values = np.linspace(0, 1, 1001)
    assert np.abs(linear_to_srgb(srgb_to_linear(values)) - values).max() < 1e-7


def test_shrinking_adds_up_light() -> None:
    stripes = np.zeros((8, 8, 3), np.uint8)
    stripes[:, ::2] = 255
    half_the_light = round(255 * float(linear_to_srgb(np.array([0.5]))[0]))  # 188, not 128
    assert np.all(shrink(stripes, (4, 4)) == half_the_light)
    assert np.all(shrink(stripes[..., 0], (4, 4)) == 128)  # a mask holds shares of area, not light


def test_an_embedded_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # The same profile under another name, with the red and green primaries exchanged (their tags' signatures).
    renamed = srgb.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    swapped = renamed.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")
    expected = {b"": (200, 30, 60), srgb: (200, 30, 60), swapped: (30, 200, 60), b"not a profile": (200, 30, 60)}
    for profile, colour in expected.items():
        Image.new("RGB", (8, 8), (200, 30, 60)).save(tmp_path / "photo.png", icc_profile=profile)
        assert np.abs(read_photo(tmp_path / "photo.png").rgb[0, 0].astype(int) - colour).max() <= 1


def test_a_cut_off_jpeg_is_refused_by_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(smooth_photo(200, 100)).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:900])
    with pytest.raises(CaptureError, match=r"cut\.jpg: cannot be decoded"):
        read_photo(tmp_path / "cut.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "heic"])
def test_every_kind_of_photo_reads_the_same(suffix: str, tmp_path: Path) -> None:
    photo = Image.fromarray(smooth_photo(96, 64))
    photo.save(tmp_path / f"photo.{suffix}", quality=95)
    read = read_photo(tmp_path / f"photo.{suffix}").rgb
    assert np.abs(read.astype(int) - smooth_photo(96, 64)).mean() < 1.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_turned_upright_once(orientation: int, tmp_path: Path) -> None:
    """libheif undoes the turn while it decodes; the EXIF value must not turn the image again."""
    upright = smooth_photo(96, 64)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED_OF_UPRIGHT[orientation](upright))
    heif = pillow_heif.from_pillow(Image.fromarray(stored))
    heif[0].info["exif"] = exif.tobytes()  # and the turn as HEIF's own property, as phones write both
    heif.save(tmp_path / "photo.heic", quality=95)
    assert (b"irot" in (tmp_path / "photo.heic").read_bytes()) == (orientation not in (1, 2, 4))
    photo = read_photo(tmp_path / "photo.heic")
    assert photo.orientation == 1
    assert photo.rgb.shape == upright.shape
    assert np.abs(photo.rgb.astype(int) - upright).mean() < 2


def test_sixteen_bit_pngs_keep_their_upper_byte(tmp_path: Path) -> None:
    ramp = np.arange(64 * 96, dtype=np.uint16).reshape(64, 96) * 10
    cv2.imwrite(str(tmp_path / "grey.png"), ramp)
    assert np.array_equal(read_photo(tmp_path / "grey.png").rgb[..., 1], ramp >> 8)
    cv2.imwrite(str(tmp_path / "colour.png"), np.stack([ramp, ramp[::-1], ramp[:, ::-1]], -1))  # BGR
    colour = read_photo(tmp_path / "colour.png").rgb
    assert np.array_equal(colour, np.stack([ramp[:, ::-1], ramp[::-1], ramp], -1) >> 8)


def test_alpha_is_kept_apart(tmp_path: Path) -> None:
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[1:3, 2:4] = [200, 100, 50, 255]
    Image.fromarray(rgba).save(tmp_path / "cut-out.png")
    alpha = read_alpha(tmp_path / "cut-out.png")
    assert alpha is not None
    assert np.array_equal(alpha, rgba[..., 3])
    assert read_photo(tmp_path / "cut-out.png").rgb.shape == (4, 6, 3)
    assert read_alpha(SPOT / "images" / "000000.jpg") is None


@pytest.fixture(scope="module")
def conditioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stage run on the first 12 frames of the small spot capture, frame 3 unusable."""
    folder = tmp_path_factory.mktemp("condition")
    usable = [i for i in range(12) if i != 3]
    (folder / "validate").mkdir()
    Validation(capture_id="spot-arcore", frame_count=60, usable=usable, unusable=[], warnings=[]).write(
        folder / "validate" / "validation.json"
    )
    output = folder / "condition"
    output.mkdir()
    inputs = StageInputs({CAPTURE: SPOT, "validate": folder / "validate"})
    result = run(inputs, output, ConditionConfig(long_side=256), LogProgress())
    assert result.metrics["frames"] == 11
    return output


def test_stage_output_is_complete_and_centred(conditioned: Path) -> None:
    document = ConditionedFrames.read(conditioned / "cameras.json")
    assert [frame.index for frame in document.frames] == [0, 1, 2, *range(4, 12)]
    records = [json.loads(line) for line in (SPOT / "frames.jsonl").read_text().splitlines()]
    for frame in document.frames:
        image = Image.open(conditioned / frame.file)
        assert image.size == (frame.width, frame.height)
        assert max(image.size) <= 256
        assert frame.intrinsics.fx == frame.intrinsics.fy
        assert (frame.intrinsics.cx, frame.intrinsics.cy) == (frame.width / 2, frame.height / 2)
        assert frame.pose_world.p == records[frame.index]["pose_world"]["p"]
        assert frame.sharpness is not None
        assert frame.sharpness > 0
        assert frame.luma is not None
        assert 0 < frame.luma < 1


def test_blurred_frames_are_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "validate").mkdir()
    usable = list(range(10, 30))
    Validation(capture_id="spot-arcore", frame_count=60, usable=usable, unusable=[], warnings=[]).write(
        tmp_path / "validate" / "validation.json"
    )
    inputs = StageInputs({CAPTURE: SPOT, "validate": tmp_path / "validate"})
    truth = json.loads((SPOT.parent / "truth" / "poses.json").read_text())
    blurred = {frame["i"] for frame in truth["frames"] if frame["blurred"]} & set(usable)
    for share, dropped in ((0.25, blurred), (0.0, set())):
        output = tmp_path / f"out-{share}"
        result = run(inputs, output, ConditionConfig(min_sharpness=share), LogProgress())
        kept = {frame.index for frame in ConditionedFrames.read(output / "cameras.json").frames}
        assert kept == set(usable) - dropped
        assert {int(path.stem) for path in (output / "images").iterdir()} == kept
        assert [warning.split(":")[0] for warning in result.warnings] == [f"frame {i}" for i in sorted(dropped)]


def test_each_frame_is_conditioned_by_its_own_lens(make_capture, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = make_capture(frames=3)
    capture = read_capture(folder)
    fisheye = Distortion(model="opencv_fisheye", k=[0.02, 0.0, 0.0, 0.0])
    header = capture.document.model_copy(
        update={"camera": CameraSettings(distortion=Distortion(model="opencv", k=[0.1, 0, 0, 0]))}
    )
    frames = [*capture.frames[:2], capture.frames[2].model_copy(update={"distortion": fisheye})]
    assert write_capture(folder, header, frames).version == "1.1"
    (tmp_path / "validate").mkdir()
    Validation(capture_id="test-capture", frame_count=3, usable=[0, 2], unusable=[], warnings=[]).write(
        tmp_path / "validate" / "validation.json"
    )
    (tmp_path / "out").mkdir()
    run(StageInputs({CAPTURE: folder, "validate": tmp_path / "validate"}), tmp_path / "out", ConditionConfig(),
        LogProgress())  # fmt: skip
    first, last = ConditionedFrames.read(tmp_path / "out" / "cameras.json").frames
    assert (first.source.distortion_model, first.source.distortion) == ("opencv", [0.1, 0, 0, 0])
    assert (last.source.distortion_model, last.source.distortion) == (fisheye.model, fisheye.k)


def test_sharpness_is_relative_to_what_neighbours_show() -> None:
    drifting = np.array([100, 110, 130, 150, 5, 180, 200, 230, 260, 300], np.float64)
    shares = relative_sharpness(drifting)
    assert np.flatnonzero(shares < 0.25).tolist() == [4]
    assert shares[4] == pytest.approx(5 / np.median(np.delete(drifting, 4)[:8]))
    assert relative_sharpness(np.array([3.0])).tolist() == [1.0]
    assert relative_sharpness(np.zeros(4)).tolist() == [1.0] * 4


def test_output_jpegs_keep_full_colour_resolution(conditioned: Path) -> None:
    image = Image.open(conditioned / "images" / "000000.jpg")
    assert [component[1:3] for component in image.layer] == [(1, 1)] * 3


def test_a_wrong_stated_size_is_refused(tmp_path: Path) -> None:
    Image.fromarray(smooth_photo(80, 60)).save(tmp_path / "photo.png")
    with pytest.raises(CaptureError, match=r"frame 0: size is stated as 60×80, but images/photo.png has 80×60"):
        condition_one(tmp_path, (80, 60), q=[0.0, 0.0, 0.0, 1.0])


def test_frames_keep_their_order_and_the_first_error_is_raised() -> None:
    assert map_frames(lambda x: x * x, range(50), LogProgress(), "squares", bytes_per_frame=1 << 28) == [
        x * x for x in range(50)
    ]

    def refuse_seven(x: int) -> int:
        if x == 7:
            raise CaptureError("frame 7")
        return x

    with pytest.raises(CaptureError, match="frame 7"):
        map_frames(refuse_seven, range(50), LogProgress(), "squares")


def test_a_containers_cpu_limit_counts(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert usable_cores(tmp_path / "cpu.max") == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path / "cpu.max") == usable_cores(tmp_path / "absent")

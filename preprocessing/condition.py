"""Stage `condition`: raw frames become upright, undistorted pinhole images with a centred principal point.

Full frames are kept (pose refinement needs the background); only what undistortion and centring cannot fill is
cut away. Each image is resampled once, straight from the raw pixels: interpolated in stored sRGB values on a
grid at least as fine as the raw one, then averaged down in linear light (see `images.shrink`). Output is sRGB.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from preprocessing.anchors import passes_of, relative_poses
from preprocessing.frame_selection import Selection, select_frames
from preprocessing.images import EXIF_ORIENTATIONS, UInt8, read_photo, shrink, write_jpeg
from preprocessing.lens import distort, undistort
from preprocessing.parallel import map_frames
from scan2twin.capture.models import Distortion, FrameRecord, Intrinsics, Pose
from scan2twin.capture.reader import Capture, read_capture
from scan2twin.config import ConditionConfig
from scan2twin.errors import CaptureError
from scan2twin.frames import ConditionedFrame, ConditionedFrames, SourceCamera, Validation
from scan2twin.importers.photos import read_photos
from scan2twin.importers.scan import pose_of
from scan2twin.progress import Progress
from scan2twin.stages import CAPTURE, StageInputs, StageResult

Float64 = npt.NDArray[np.float64]
Maps = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint16]]  # OpenCV's fixed-point remap tables

SHARPNESS_LONG_SIDE = 640  # pixels; one scale for all frames, so that their sharpness can be compared
MIN_KEPT_SHARE = 0.5  # of what the raw image sees, after centring; less means that the principal point is wrong
WIDEST_HALF = math.tan(math.radians(55.0))  # half of a conditioned image: beyond, a flat one stretches the border
# Decoded raw image, its oversampled copy in 8 and 16 bits, and remap tables.
BYTES_PER_RAW_PIXEL = 20
BORDER_SAMPLES = 64  # points along each side of the raw image
# Up must lie at least this much in the image plane (sine of the angle to the optical axis) to tell the image's
# upright direction from gravity: looking down steeper than 60° it does not.
MIN_UP_IN_IMAGE = 0.5


@dataclass(frozen=True)
class TargetCamera:
    """A pinhole camera without distortion: fx = fy = `focal`, principal point at the image's centre; pixels."""

    width: int
    height: int
    focal: float

    @property
    def intrinsics(self) -> Intrinsics:
        """The same as intrinsics."""
        return Intrinsics(fx=self.focal, fy=self.focal, cx=self.width / 2, cy=self.height / 2)


def camera_matrix(intrinsics: Intrinsics) -> Float64:
    """Return K (3×3) for OpenCV, whose pixel (0, 0) is the first pixel's centre, not its corner."""
    return np.array(
        [[intrinsics.fx, 0, intrinsics.cx - 0.5], [0, intrinsics.fy, intrinsics.cy - 0.5], [0, 0, 1]], np.float64
    )


def raw_to_upright(source: SourceCamera) -> Float64:
    """Return the 3×3 map from raw to upright camera coordinates (OpenCV axes: +X right, +Y down, +Z forward).

    A rotation about the optical axis; for a mirrored raster a rotation times a reflection.
    """
    turn = Rotation.from_euler("z", -90 * source.rotation_quarters, degrees=True).as_matrix()
    return np.round(turn) @ np.diag([-1.0 if source.mirrored else 1.0, 1.0, 1.0])


def upright_pose(pose: Pose, rotation_quarters: int) -> Pose:
    """Return camera-to-world of the image turned by `rotation_quarters` quarters counter-clockwise.

    Turning the image counter-clockwise is rolling the camera clockwise about its optical axis:
    q_upright = q ⊗ q_z(−90° · quarters).
    """
    roll = Rotation.from_euler("z", -90 * rotation_quarters, degrees=True)
    return Pose(p=pose.p, q=(Rotation.from_quat(pose.q) * roll).as_quat().tolist())


def upright_quarters(pose: Pose) -> int:
    """Return the quarter turns counter-clockwise that bring the world's up (+Y) nearest to the image's up.

    0 where the camera looks so steeply up or down that gravity does not tell.
    """
    up_x, up_y, _ = Rotation.from_quat(pose.q).inv().apply([0.0, 1.0, 0.0])  # OpenGL camera axes
    if np.hypot(up_x, up_y) < MIN_UP_IN_IMAGE:
        return 0
    return round(math.degrees(math.atan2(up_x, up_y)) / 90) % 4


def raw_to_target(points: Float64, source: SourceCamera, target: TargetCamera) -> Float64:
    """Map raw pixels (N, 2) to pixels of `target` (our pixel origin: the top-left corner); NaN where impossible."""
    K = source.intrinsics
    ideal = undistort((points - [K.cx, K.cy]) / [K.fx, K.fy], source.distortion_model, source.distortion)
    turned = ideal @ raw_to_upright(source)[:2, :2].T  # about the optical axis, so z stays 1
    mapped: Float64 = turned * target.focal + [target.width / 2, target.height / 2]
    return mapped


def target_to_raw(points: Float64, source: SourceCamera, target: TargetCamera) -> Float64:
    """Map pixels of `target` (N, 2) to raw pixels."""
    K = source.intrinsics
    unturned = (points - [target.width / 2, target.height / 2]) / target.focal @ raw_to_upright(source)[:2, :2]
    return distort(unturned, source.distortion_model, source.distortion) * [K.fx, K.fy] + [K.cx, K.cy]


def new_camera(source: SourceCamera, long_side: int) -> TargetCamera:
    """Return the camera of the conditioned image: fx = fy, principal point at the centre, no distortion.

    Its image is the largest rectangle symmetric about the optical axis that the raw image fills, scaled so that
    its longer side is at most `long_side` pixels; never enlarged.

    Raises:
        CaptureError: intrinsics or distortion leave less than half of the image, or cannot be inverted.

    """
    along = np.linspace(0, 1, BORDER_SAMPLES)
    zero, one = np.zeros_like(along), np.ones_like(along)
    size = np.array([source.width, source.height], np.float64)
    sides = [np.stack(side, 1) * size for side in ((zero, along), (one, along), (along, zero), (along, one))]
    # x/z and y/z of the raw border, seen along the raw camera's axes; the turn comes at the end.
    unturned = source.model_copy(update={"rotation_quarters": 0, "mirrored": False})
    left, right, top, bottom = (raw_to_target(side, unturned, TargetCamera(0, 0, 1.0)) for side in sides)
    reach_x, reach_y = (-left[:, 0].max(), right[:, 0].min()), (-top[:, 1].max(), bottom[:, 1].min())
    half_width, half_height = min(*reach_x, WIDEST_HALF), min(*reach_y, WIDEST_HALF)
    kept = (2 * min(reach_x) / sum(reach_x)) * (2 * min(reach_y) / sum(reach_y))
    if not (half_width > 0 and half_height > 0 and kept >= MIN_KEPT_SHARE):  # NaN where the lens cannot be undone
        raise CaptureError(
            f"intrinsics {source.intrinsics.model_dump()} and {source.distortion_model} distortion "
            f"{source.distortion} do not fit an image of {source.width}×{source.height} pixels "
            "(principal point far off centre, or distortion that cannot be "
            "undone); give the camera's own calibration, or none for distortion"
        )
    focal = min(source.intrinsics.fx, source.intrinsics.fy)
    focal *= min(1.0, long_side / (2 * focal * max(half_width, half_height)))
    if source.rotation_quarters % 2:
        half_width, half_height = half_height, half_width
    width, height = (int(2 * focal * half + 1e-6) for half in (half_width, half_height))
    return TargetCamera(width, height, focal)


def warp_maps(source: SourceCamera, target: TargetCamera, oversampling: int = 1) -> Maps:
    """Return OpenCV remap tables from the raw image to `target`'s, `oversampling` samples along each pixel side."""
    fine = TargetCamera(target.width * oversampling, target.height * oversampling, target.focal * oversampling)
    if source.distortion_model == "opencv":
        return cv2.initUndistortRectifyMap(
            camera_matrix(source.intrinsics), np.array(source.distortion, np.float64), raw_to_upright(source),
            camera_matrix(fine.intrinsics), (fine.width, fine.height), cv2.CV_16SC2,
        )  # fmt: skip
    whole, fraction = np.empty((fine.height, fine.width, 2), np.int16), np.empty((fine.height, fine.width), np.uint16)
    columns = np.arange(fine.width) + 0.5
    for row in range(fine.height):  # one at a time, for the points in float64 take a hundred bytes each
        points = np.column_stack([columns, np.full(fine.width, row + 0.5)])
        raw = (target_to_raw(points, source, fine) - 0.5).astype(np.float32)[None]
        whole[row], fraction[row] = cv2.convertMaps(raw, None, cv2.CV_16SC2)
    return whole, fraction


@lru_cache(maxsize=2)  # most captures have one camera; phones that refocus change it with every frame
def _cached_maps(source_json: str, target: TargetCamera, oversampling: int) -> Maps:
    return warp_maps(SourceCamera.model_validate_json(source_json), target, oversampling)


def warp_image(raw: UInt8, source: SourceCamera, target: TargetCamera) -> UInt8:
    """Resample a raw raster, (H, W, 3) sRGB or (H, W) mask, into the image of `target`.

    So many samples are taken in each target pixel that no raw pixel is left out.
    """
    raw_focal = max(source.intrinsics.fx, source.intrinsics.fy)
    samples = max(1, math.ceil(raw_focal / target.focal - 0.25))
    maps = _cached_maps(source.model_dump_json(), target, samples)
    # Lanczos where nothing is averaged: OpenCV's bicubic (a = -0.75) shifts detail by up to 0.06 pixels.
    interpolation = cv2.INTER_LANCZOS4 if samples == 1 else cv2.INTER_LINEAR
    fine: UInt8 = cv2.remap(raw, *maps, interpolation, borderMode=cv2.BORDER_REPLICATE)
    return fine if samples == 1 else shrink(fine, (target.width, target.height))


def sharpness_and_luma(rgb: UInt8) -> tuple[float, float]:
    """Return the variance of the Laplacian (8-bit grey levels squared) at a fixed scale, and the mean luma 0..1."""
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    scale = SHARPNESS_LONG_SIDE / max(height, width)
    if scale < 1:
        grey = cv2.resize(grey, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var()), float(grey.mean() / 255)


def condition_frame(
    record: FrameRecord, capture_root: Path, distortion: Distortion | None, output: Path, long_side: int
) -> ConditionedFrame:
    """Condition one frame, which has a pose: write its image under `output` and return its camera.

    `distortion` is the capture's.

    Raises:
        CaptureError: the image cannot be decoded, is not of the stated size, or its camera cannot be inverted.

    """
    photo = read_photo(capture_root / record.file)
    height, width = photo.rgb.shape[:2]
    if (width, height) != (record.width, record.height):
        raise CaptureError(
            f"frames.jsonl: frame {record.i}: size is stated as {record.width}×{record.height}, but {record.file} "
            f"has {width}×{height} pixels; state the size of the file as stored, before any EXIF rotation"
        )
    assert record.pose_world is not None
    assert record.intrinsics is not None
    if photo.orientation is None:
        mirrored, quarters = False, upright_quarters(record.pose_world)
    else:
        mirrored, quarters = EXIF_ORIENTATIONS[photo.orientation]
    lens = record.distortion or distortion
    source = SourceCamera(
        width=width, height=height, intrinsics=record.intrinsics, rotation_quarters=quarters, mirrored=mirrored,
        distortion=lens.k if lens else [], distortion_model=lens.model if lens else "opencv",
    )  # fmt: skip
    try:
        target = new_camera(source, long_side)
    except CaptureError as error:
        raise CaptureError(f"frames.jsonl: frame {record.i}: {error}") from None
    rgb = warp_image(photo.rgb, source, target)
    name = f"images/{record.i:06d}.jpg"
    write_jpeg(output / name, rgb)
    sharpness, luma = sharpness_and_luma(rgb)
    return ConditionedFrame(
        index=record.i, file=name, width=target.width, height=target.height, intrinsics=target.intrinsics,
        pose_world=upright_pose(record.pose_world, quarters), anchor=record.anchor, tracking=record.tracking,
        support=record.support, t=record.t, pose_t=record.pose_t, sharpness=sharpness, luma=luma, source=source,
    )  # fmt: skip


def run(inputs: StageInputs, outputs: Path, config: ConditionConfig, progress: Progress) -> StageResult:
    """Write `images/NNNNNN.jpg` and `cameras.json` (`ConditionedFrames`) for the usable frames worth keeping.

    The cameras of plain photos are found first, by structure from motion.

    Raises:
        CaptureError: a frame cannot be conditioned; the message names it.

    """
    capture = read_capture(inputs[CAPTURE])
    usable = set(Validation.read(inputs["validate"] / "validation.json").usable)
    records = [record for record in capture.frames if record.i in usable]
    warnings: list[str] = []
    if capture.is_plain_photos:
        records, warnings = cameras_of_photos(capture, records, progress)
    camera = capture.document.camera
    distortion = camera.distortion if camera else None
    (outputs / "images").mkdir(parents=True, exist_ok=True)
    frames = map_frames(
        lambda record: condition_frame(record, capture.root, distortion, outputs, config.long_side),
        records, progress, "conditioning frames",
        bytes_per_frame=BYTES_PER_RAW_PIXEL * max(record.width * record.height for record in records),
    )  # fmt: skip
    sharpness = np.array([frame.sharpness for frame in frames], np.float64)
    metric = capture.document.scale.metric
    selection = select_frames(
        sharpness, *camera_places(frames), metric=metric, min_sharpness=config.min_sharpness,
        min_spacing=config.min_spacing, passes=passes_of(frames, capture.document.reference_anchor),
    )  # fmt: skip
    for row in selection.dropped:
        (outputs / frames[row].file).unlink()
    kept = [frame for row, frame in enumerate(frames) if row not in selection.dropped]
    ConditionedFrames(
        capture_id=capture.document.capture_id, reference_anchor=capture.document.reference_anchor,
        object=capture.document.object, metric=metric, frames=kept,
    ).write(outputs / "cameras.json")  # fmt: skip
    return StageResult(
        metrics={
            "frames": len(kept),
            "frames_blurred": len(selection.blurred),
            "frames_repeated": len(selection.repeated),
            "width": kept[0].width,
            "height": kept[0].height,
            "sharpness_median": float(np.median(sharpness)),
            "luma_median": float(np.median([frame.luma for frame in kept])),
        },
        warnings=[*warnings, *_selection_warnings(frames, selection)],
    )


def cameras_of_photos(
    capture: Capture, records: Sequence[FrameRecord], progress: Progress
) -> tuple[list[FrameRecord], list[str]]:
    """Return the records of photos without poses with poses, intrinsics and distortion, and warnings.

    Photos that match none of the others are left out. Raises CaptureError if too few match.
    """
    with tempfile.TemporaryDirectory(prefix="scan2twin-sfm-") as scratch:
        scan = read_photos([capture.root / record.file for record in records], Path(scratch), progress)
    found = {frame.photo: frame for frame in scan.frames}
    return [
        record.model_copy(
            update={
                "pose_world": pose_of(frame.camera_to_world, 1.0, record.file), "intrinsics": frame.intrinsics,
                "distortion": frame.distortion, "tracking": "normal",
            }
        )
        for record in records
        if (frame := found.get(capture.root / record.file))
    ], list(scan.warnings)  # fmt: skip


def camera_places(frames: Sequence[ConditionedFrame]) -> tuple[Float64, Float64]:
    """Return camera centres and unit optical axes, (N, 3) each, relative to the anchor where frames carry it.

    NaN for a frame without the anchor among frames with it, for no frame of reference holds for it and the others,
    and where the tracker had lost the camera or the anchor.
    """
    rotation = Rotation.from_quat([frame.pose_world.q for frame in frames])
    position = np.array([frame.pose_world.p for frame in frames])
    anchors = [frame.anchor for frame in frames]
    if any(anchors):
        rotation, position = relative_poses(
            Rotation.from_quat([anchor.q if anchor else [0.0, 0.0, 0.0, 1.0] for anchor in anchors]),
            np.array([anchor.p if anchor else [math.nan] * 3 for anchor in anchors]),
            rotation, position,
        )  # fmt: skip
    lost = [frame.tracking == "lost" or bool(frame.anchor and not frame.anchor.tracked) for frame in frames]
    position[lost] = math.nan
    return position, rotation.apply([0.0, 0.0, -1.0])


def _selection_warnings(frames: Sequence[ConditionedFrame], selection: Selection) -> Iterator[str]:
    for row, frame in enumerate(frames):
        if share := selection.blurred.get(row, selection.needed.get(row)):
            fate = "left out" if row in selection.blurred else "kept, for no other frame shows that side, but"
            yield (
                f"frame {frame.index}: {fate}: blurred, {100 * share:.0f} % as sharp as its neighbours; "
                "move more slowly"
            )
        if (sharper := selection.repeated.get(row)) is not None:
            yield (
                f"frame {frame.index}: left out: taken from the same place as frame {frames[sharper].index}, "
                "which is sharper"
            )

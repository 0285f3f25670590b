"""The compensate_poses stage: camera poses relative to the reference anchor, and the unit box.

A tracker such as ARCore corrects its world frame while it runs, so world poses of different frames do not belong
together; the camera relative to an anchor at the same moment does. What is left is the jitter of the anchor's own
pose, smoothed between corrections. Quaternions are [x, y, z, w], rotations take camera or anchor to world.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from preprocessing.anchors import (
    MAX_ANCHOR_DISTANCE_M,
    MAX_GAP_FRAMES,
    AnchorTrack,
    Correction,
    Poses,
    anchor_tracks,
    best_anchors,
    find_corrections,
    has_pose,
    interpolate_poses,
    passes_of,
    relative_poses,
    short_gaps,
    smooth_anchor,
    support_to_reference,
)
from preprocessing.object_box import box_from_cameras
from scan2twin.capture.models import ObjectBox
from scan2twin.config import CompensatePosesConfig
from scan2twin.errors import CaptureError
from scan2twin.frames import ConditionedFrame, ConditionedFrames, Matrix4, PosedFrame, PosedFrames
from scan2twin.progress import Progress
from scan2twin.stages import StageInputs, StageResult

Array = NDArray[np.float64]

POSES_FILE = "poses.json"
LIMITED_WEIGHT = 0.5  # trust in a pose while the tracker calls its tracking limited
MAX_TILT_DEG = 5.0  # anchors on a floor or table are level within 1-2°; more and the model visibly leans
MAX_SUPPORT_SPREAD_M = 0.01  # anchors drift against each other by millimetres; more and one of them slipped
MAX_POSE_DELAY_S = 0.1  # three frames of a 30 Hz tracker; over longer times a hand does not move steadily
# A gap is bridged where the view turns by less than this over it: the path of a hand is near enough to a straight line
# that matching can find the true pose (at 45° the arc bulges by 8 % of its radius).
MAX_GAP_TURN_DEG = 45.0
# A camera whose world positions spread by less than this share of those relative to the anchor stands still.
TURNTABLE_SHARE = 0.2
MIN_MOTION = 0.02  # of the camera distance: with less, the camera did not move round the object at all


@dataclass(frozen=True)
class Compensation:
    """Camera-to-reference poses of the frames in `rows`, and what was found on the way."""

    rows: Sequence[int] = ()  # of the conditioned frames
    rotation: Rotation = field(default_factory=Rotation.identity)
    position: Array = field(default_factory=lambda: np.empty((0, 3)))  # (len(rows), 3)
    guessed: frozenset[int] = frozenset()  # rows whose pose stands in for one the tracker did not have
    turntable: bool = False
    figures: Mapping[str, object] = field(default_factory=dict)
    warnings: Sequence[str] = ()


def run(inputs: StageInputs, outputs: Path, config: CompensatePosesConfig, progress: Progress) -> StageResult:
    """Read `condition/cameras.json`, write `poses.json` (`PosedFrames`).

    Raises:
        CaptureError: no frame has a pose, the camera did not move round the object, or the capture has no object
            box and the cameras do not look at one place.

    """
    conditioned = ConditionedFrames.read(inputs["condition"] / "cameras.json")
    progress.start("compensating poses", len(conditioned.frames))
    first, *others = _passes(conditioned)
    found = compensate(first, smooth=config.smooth_anchor)
    warnings = [*_turned_meanwhile(conditioned, [first, *others]), *found.warnings]
    box = first.object
    if box is None:
        box = _box_from_cameras(first, found)
        warnings.append(
            f"the capture has no object box: taken from where the cameras look, a cube of {box.size[0]:.3g} "
            f"{'m' if conditioned.metric else 'units'}; give `object` in capture.json for a tighter one"
        )
    posed = _posed(first, found, box)
    turned: list[PosedFrames] = []
    for other in others:
        numbers = _listed(frame.index for frame in other.frames)
        try:
            found_other = compensate(other, smooth=config.smooth_anchor)
            turned.append(_posed(other, found_other, _box_of_turned(_box_from_cameras(other, found_other), box)))
        except CaptureError as error:
            warnings.append(f"frames {numbers}, of the object turned over, are left out: {error}")
            continue
        warnings += [f"of the object turned over: {warning}" for warning in found_other.warnings]
    counted = [frame.index for one in (posed, *turned) for frame in one.frames if frame.weight == LIMITED_WEIGHT]
    if counted:
        warnings.append(f"tracking was limited at frames {_listed(counted)}: their poses count less")
    posed.model_copy(update={"turned": turned}).write(outputs / POSES_FILE)
    progress.advance(len(conditioned.frames))
    counts = {"frames": len(posed.frames), "turned_frames": sum(len(one.frames) for one in turned)}
    return StageResult({**counts, **found.figures}, warnings)


def _passes(conditioned: ConditionedFrames) -> list[ConditionedFrames]:
    """Split a capture whose object was turned over into passes, each by its own anchor; the reference's comes first.

    Nobody knows how the object lies in the later ones, so they have no box.
    """
    reference = conditioned.reference_anchor
    ids = passes_of(conditioned.frames, reference)
    others = [id_ for id_ in dict.fromkeys(ids) if id_ not in (None, reference)]

    def one(anchor: str | None) -> ConditionedFrames:
        frames = [frame for frame, id_ in zip(conditioned.frames, ids, strict=True) if id_ == anchor]
        return conditioned.model_copy(update={"reference_anchor": anchor, "frames": frames})

    return [one(reference), *(one(id_).model_copy(update={"object": None}) for id_ in others)]


def _turned_meanwhile(conditioned: ConditionedFrames, passes: Sequence[ConditionedFrames]) -> Iterator[str]:
    known = {frame.index for one in passes for frame in one.frames}
    for frame in conditioned.frames:
        if frame.index not in known:
            yield f"frame {frame.index} is left out: no anchor of the object was tracked while it was turned over"


def _box_from_cameras(conditioned: ConditionedFrames, found: Compensation) -> ObjectBox:
    return box_from_cameras(
        pose_matrices(found.rotation, found.position), [conditioned.frames[row] for row in found.rows]
    )


def _box_of_turned(looked_at: ObjectBox, first: ObjectBox) -> ObjectBox:
    """Return a cube that holds the object however it lies: as wide as its first box is from corner to corner."""
    side = min(looked_at.size[0], float(np.linalg.norm(first.size)))
    return ObjectBox(center=looked_at.center, size=[side] * 3)


def _posed(conditioned: ConditionedFrames, found: Compensation, box: ObjectBox) -> PosedFrames:
    """Return the frames of one pass with their poses.

    Raises:
        CaptureError: the camera did not move round the object.

    """
    _check_motion(found.position, box, conditioned.metric)
    frames = [conditioned.frames[row] for row in found.rows]
    return PosedFrames(
        capture_id=conditioned.capture_id,
        metric=conditioned.metric,
        object=box,
        unit_to_reference=unit_to_reference(box),
        turntable=found.turntable,
        frames=[
            PosedFrame(
                index=frame.index,
                file=frame.file,
                width=frame.width,
                height=frame.height,
                intrinsics=frame.intrinsics,
                camera_to_reference=matrix.tolist(),
                weight=LIMITED_WEIGHT if frame.tracking == "limited" else 1.0,
                guessed=row in found.guessed,
            )
            for row, frame, matrix in zip(
                found.rows, frames, pose_matrices(found.rotation, found.position), strict=True
            )
        ],
    )


def compensate(conditioned: ConditionedFrames, *, smooth: bool) -> Compensation:
    """Find the poses of all frames that have one, at the times their images were taken, and of those in short gaps.

    Raises:
        CaptureError: no frame has a pose relative to the reference anchor.

    """
    frames, reference = conditioned.frames, conditioned.reference_anchor
    tracks = anchor_tracks(frames)
    if reference is not None and reference not in tracks:
        raise CaptureError(
            f"cameras.json: the reference anchor {reference!r} was tracked in no frame, so nobody knows where the "
            "object is; record again, and keep the place of the anchor in sight at the start"
        )
    world = Rotation.from_quat([frame.pose_world.q for frame in frames]), np.array([f.pose_world.p for f in frames])
    if reference is None:
        posed = [has_pose(frame, None) for frame in frames]
        return _at_image_times(frames, posed, world, Compensation())
    chosen = best_anchors(tracks, reference, world[1])
    posed = [id_ is not None for id_ in chosen]
    position = _relative_to_reference(tracks, reference, chosen, world)[1]
    if _stands_still(world[1][posed], position[posed]):
        steady, corrections, turntable = tracks, list[Correction](), True
    else:
        (steady, corrections), turntable = _steady(tracks, smooth=smooth), False
    poses = _relative_to_reference(steady, reference, chosen, world)
    found = _describe(frames, tracks, steady, reference, chosen, corrections, poses[1][posed], turntable=turntable)
    return _at_image_times(frames, posed, poses, found)


def _steady(tracks: Mapping[str, AnchorTrack], *, smooth: bool) -> tuple[dict[str, AnchorTrack], list[Correction]]:
    """Return the tracks without jitter, and the corrections of the world frame that any of them shows."""
    steady: dict[str, AnchorTrack] = {}
    corrections: dict[int, Correction] = {}
    for id_, track in tracks.items():
        found = find_corrections(*track.poses)
        for correction in found:
            row = int(track.rows[correction.row])
            known = corrections.get(row, Correction(row, 0.0, 0.0))
            corrections[row] = Correction(
                row, max(known.translation_m, correction.translation_m),
                max(known.rotation_deg, correction.rotation_deg),
            )  # fmt: skip
        poses = smooth_anchor(*track.poses, [correction.row for correction in found]) if smooth else track.poses
        steady[id_] = AnchorTrack(track.rows, *poses)
    return steady, [corrections[row] for row in sorted(corrections)]


def _relative_to_reference(
    tracks: Mapping[str, AnchorTrack], reference: str, chosen: Sequence[str | None], world: Poses
) -> Poses:
    """Return camera-to-reference poses of the N frames, each through its `chosen` anchor; identity where it is None."""
    quaternions, positions = np.tile([0.0, 0.0, 0.0, 1.0], (len(chosen), 1)), np.zeros((len(chosen), 3))
    for id_ in {id_ for id_ in chosen if id_ is not None}:
        track = tracks[id_]
        rows = [row for row, one in enumerate(chosen) if one == id_]
        at = np.searchsorted(track.rows, rows)
        rotation, position = relative_poses(track.rotation[at], track.position[at], world[0][rows], world[1][rows])
        if id_ != reference:
            (turn, shift), _ = support_to_reference(tracks, reference, id_)
            rotation, position = turn * rotation, turn.apply(position) + shift
        quaternions[rows], positions[rows] = rotation.as_quat(), position
    return Rotation.from_quat(quaternions), positions


def _stands_still(world: Array, relative: Array) -> bool:
    """Tell from the camera's positions (N, 3) whether it stood still in the world and the anchor turned instead."""

    def spread(positions: Array) -> float:
        return float(np.median(np.linalg.norm(positions - np.median(positions, axis=0), axis=1)))

    return spread(world) < TURNTABLE_SHARE * spread(relative)


def _at_image_times(
    frames: Sequence[ConditionedFrame], posed: Sequence[bool], poses: Poses, found: Compensation
) -> Compensation:
    """Add the poses of the frames at their images' times; in short gaps those between the neighbours' (`guessed`).

    Interpolation is between poses of the sensor, which the images' quarter turns do not concern.
    """
    quarters = np.array([frame.source.rotation_quarters for frame in frames])
    roll = Rotation.from_rotvec(np.pi / 2 * quarters[:, None] * [0.0, 0.0, 1.0])
    sensor, position = poses[0] * roll, poses[1]
    image_times = np.array([frame.t for frame in frames])
    pose_times = np.array([frame.t if frame.pose_t is None else frame.pose_t for frame in frames])
    known = np.flatnonzero(posed)
    known = known[np.unique(pose_times[known], return_index=True)[1]]  # of poses at one time the first
    delay = np.abs(image_times - pose_times)
    guessed, lost = _bridged(frames, posed, sensor)
    moving = [row for row in range(len(frames)) if row in guessed or (posed[row] and delay[row] > 0)]
    quaternions, position = sensor.as_quat(), position.copy()
    if moving and len(known) >= 2:
        between = interpolate_poses(image_times[moving], pose_times[known], sensor[known], position[known])
        quaternions[moving], position[moving] = between[0].as_quat(), between[1]
    rows = [row for row in range(len(frames)) if posed[row] or row in guessed]
    warnings = [f"frame {frames[row].index} is left out: {reason}" for row, reason in lost.items()]
    if guessed:
        warnings.append(
            f"frames {_listed(frames[row].index for row in sorted(guessed))} have no pose of their own: guessed from "
            "the frames round them, and kept only if refinement confirms it"
        )
    if (longest := float(delay[rows].max(initial=0.0))) > MAX_POSE_DELAY_S:
        warnings.append(
            f"poses and images are up to {longest:.2f} s apart in time, so poses are rough; check the recorder's clock"
        )
    figures = {"guessed": len(guessed), "left_out": len(lost), "largest_pose_delay_s": longest}
    return replace(
        found, rows=rows, rotation=(Rotation.from_quat(quaternions) * roll.inv())[rows], position=position[rows],
        guessed=frozenset(guessed), figures={**found.figures, **figures}, warnings=[*found.warnings, *warnings],
    )  # fmt: skip


def _bridged(
    frames: Sequence[ConditionedFrame], posed: Sequence[bool], sensor: Rotation
) -> tuple[set[int], dict[int, str]]:
    """Return the frames without a pose that their neighbours' poses may stand in for, and why the others are lost."""
    bridged, lost = set[int](), dict[int, str]()
    known = np.flatnonzero(posed)
    for row, short in enumerate(short_gaps(posed)):
        if posed[row]:
            continue
        reason = "the tracker lost the camera" if frames[row].tracking == "lost" else "no anchor was tracked"
        if not short:
            lost[row] = f"{reason}, for more than {MAX_GAP_FRAMES} frames or at an end of the capture; move slowly"
            continue
        before, after = known[known < row][-1], known[known > row][0]
        turn_deg = float(np.degrees((sensor[before].inv() * sensor[after]).magnitude()))
        if turn_deg > MAX_GAP_TURN_DEG:
            lost[row] = f"{reason}, and the view turned by {turn_deg:.0f}° before it was found again; move slowly"
        elif "limited" in (frames[before].tracking, frames[after].tracking):
            lost[row] = f"{reason}, and tracking was limited before or after; light the scene well and move slowly"
        else:
            bridged.add(row)
    return bridged, lost


def _check_motion(position: Array, box: ObjectBox, metric: bool) -> None:
    """Refuse cameras (N, 3) that did not move round the box.

    Raises:
        CaptureError: they stay at one place.

    """
    spread = float(np.linalg.norm(position - np.median(position, axis=0), axis=1).max())
    distance = float(np.median(np.linalg.norm(position - box.center, axis=1)))
    if spread < MIN_MOTION * distance:
        size = f"{spread * 100:.1f} cm" if metric else f"{spread:.3g} units"
        raise CaptureError(
            f"the camera did not move round the object: all its positions lie within {size}. Walk round the object; on "
            "a turntable, give the poses relative to it (an anchor on an image that lies on it), or import the photos "
            "without poses"
        )


def anchor_tilt_deg(rotation: Rotation) -> float:
    """Return the angle between the anchor's +Y and the tracker's +Y (against gravity), the median over frames."""
    up = rotation.apply([0.0, 1.0, 0.0])
    return float(np.median(np.degrees(np.arctan2(np.hypot(up[:, 0], up[:, 2]), up[:, 1]))))


def pose_matrices(rotation: Rotation, position: Array) -> Array:
    """Return N × 4 × 4 matrices with the given rotations and translations."""
    matrices = np.tile(np.eye(4), (len(position), 1, 1))
    matrices[:, :3, :3] = rotation.as_matrix()
    matrices[:, :3, 3] = position
    return matrices


def unit_to_reference(box: ObjectBox) -> Matrix4:
    """Return the similarity that takes the unit frame (box centred, longest side 1) to the reference frame."""
    scale = max(box.size)
    (x, y, z) = box.center
    return [[scale, 0.0, 0.0, x], [0.0, scale, 0.0, y], [0.0, 0.0, scale, z], [0.0, 0.0, 0.0, 1.0]]


def _describe(
    frames: Sequence[ConditionedFrame], tracks: Mapping[str, AnchorTrack], steady: Mapping[str, AnchorTrack],
    reference: str, chosen: Sequence[str | None], corrections: Sequence[Correction], position: Array, *,
    turntable: bool,
) -> Compensation:  # fmt: skip
    """Return the figures and the warnings of a compensation; `position` (N × 3) is relative to the reference anchor."""
    raw, smooth = tracks[reference], steady[reference]
    tilt_deg = anchor_tilt_deg(raw.rotation)
    distance_m = float(np.median(np.linalg.norm(position, axis=1)))
    support = sorted({id_ for id_ in chosen if id_ not in (None, reference)})
    spread_m = {id_: support_to_reference(steady, reference, id_)[1] for id_ in support}
    figures: dict[str, object] = {
        "corrections": [
            {"frame": frames[c.row].index, "translation_m": c.translation_m, "rotation_deg": c.rotation_deg}
            for c in corrections
        ],
        "anchor_jitter_mm": float(np.median(np.linalg.norm(smooth.position - raw.position, axis=1)) * 1000),
        "anchor_jitter_deg": float(np.degrees(np.median((smooth.rotation * raw.rotation.inv()).magnitude()))),
        "anchor_tilt_deg": tilt_deg,
        "median_distance_m": distance_m,
        "support_anchors": {id_: chosen.count(id_) for id_ in support},
    }
    warnings = []
    if turntable:
        warnings.append(
            "the camera stood still while the object turned (a turntable): poses are refined on the object only, for "
            "the background does not turn with it"
        )
    if corrections:
        warnings.append(
            f"the tracker corrected its world frame before frames {_listed(frames[c.row].index for c in corrections)}, "
            f"by up to {max(c.translation_m for c in corrections) * 100:.1f} cm and "
            f"{max(c.rotation_deg for c in corrections):.1f}°; compensated, nothing to do"
        )
    warnings += [
        f"anchor {id_!r} moved against the reference anchor by {metres * 100:.1f} cm (median): poses by it are rough"
        for id_, metres in spread_m.items()
        if metres > MAX_SUPPORT_SPREAD_M
    ]
    if tilt_deg > MAX_TILT_DEG:
        warnings.append(f"the anchor leans by {tilt_deg:.0f}° from upright, and so will the model; place it on a level")
    if distance_m > MAX_ANCHOR_DISTANCE_M:
        warnings.append(f"the cameras are {distance_m:.0f} m from the anchor; place it on the object for true poses")
    return Compensation(turntable=turntable, figures=figures, warnings=warnings)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))

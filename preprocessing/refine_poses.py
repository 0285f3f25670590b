"""The refine_poses stage: bundle adjustment takes the tracker's noise out of the compensated camera poses.

Features of the whole frames (the background carries most of them) are matched between neighbouring views and
triangulated from the compensated poses; cameras and points are then adjusted together, with the compensated
positions as priors that hold the metric scale and the reference frame. Every frame is checked afterwards: one that
cannot be trusted is registered anew or left out and named. Without enough texture the compensated poses stay.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.bundle_adjustment import (
    Adjustment,
    SparsePoints,
    Tolerance,
    Tracks,
    match_frames,
    stationary_share,
)
from preprocessing.camera_path import plot_camera_path
from preprocessing.exposure import gains_of_frames
from preprocessing.frame_checks import Refinement, Verdict, camera_distance, check_frames, disbelief, figures_of
from preprocessing.join_passes import join
from preprocessing.matching import choose_pairs, write_object_masks
from scan2twin.config import RefinePosesConfig
from scan2twin.frames import PosedFrame, PosedFrames
from scan2twin.progress import Progress
from scan2twin.stages import StageInputs, StageResult

Array = NDArray[np.float64]

POSES_FILE = "poses.json"
PLOT_FILE = "camera_path.png"
POINTS_FILE = "points.npz"
MIN_POINT_FRAMES = 3  # two rays always nearly meet somewhere; a third one tells

# The first round finds points from poses that may be off by a degree or two, the later ones from adjusted poses.
# Reprojection in pixels; the first as a share of the focal length (0.03 is 1.7°).
FIRST_ROUND_ANGLE_DEG, FIRST_ROUND_REPROJECTION = 6.0, 0.03
LATER_ROUNDS = (Tolerance(angle_deg=2.0, reprojection_px=8.0), Tolerance(angle_deg=2.0, reprojection_px=4.0))
# Standard deviation of a prior, an axis, as a share of the median camera distance: at first as phones have it (3 mm
# at 60 cm), then as the residuals show, within these bounds.
FIRST_PRIOR_SIGMA = 0.005
PRIOR_SIGMA_RANGE = (0.001, 0.05)
# Standard deviation of a feature's place, pixels, where the solver counts 1: without it priors weigh too much, and too
# little moves to tell how far off they are.
FEATURE_SIGMA_PX = 0.4
CHI3_MEDIAN = 1.538  # median length of a 3-vector of unit normals
# Matches that move by less than this share of the image's longer side stand still; if so many of all do, the camera
# did, and the background is of no use. Of a camera that goes round the object only points on its axis stand still.
STILL_SHARE, STILL_MATCHES = 0.003, 0.3
MASKED_FEATURES = 4  # times as many are found on the object only, for those beyond it are found too and then dropped
# Nanometres: the solver visits its unknowns in an order that differs from run to run by 1e-15; the poses do not.
POSE_DECIMALS = 9
GAIN_DECIMALS = 4  # far below what the colours of points tell


@dataclass(frozen=True)
class Attempt:
    """One way of refining a capture, and what came of it."""

    refinement: Refinement
    verdict: Verdict
    points: SparsePoints
    tracks: Tracks
    metrics: dict[str, float]
    corrections: list[dict[str, float]]  # of every adjusted frame
    disbelief: str | None  # why it is not believed


@dataclass(frozen=True)
class RefinedPass:
    """One pass of a capture after refinement: the frames that are kept, and what is known of them."""

    posed: PosedFrames
    metrics: Mapping[str, object]
    warnings: Sequence[str]
    points: Mapping[str, NDArray[Any]] | None = None  # of `points.npz`; None where poses were not refined


def run(inputs: StageInputs, outputs: Path, config: RefinePosesConfig, progress: Progress) -> StageResult:
    """Read `compensate_poses/poses.json` and condition's images; write `poses.json` (`PosedFrames`), and if refined
    `camera_path.png` and `points.npz`.

    `points.npz` holds points that three or more frames see: `xyz` (N, 3) float32 in the reference frame, `rgb` (N, 3)
    uint8 sRGB, `frames` (N,) int32, how many see it, and `error_px` (N,) float32, the mean reprojection error. Which
    frames see which points are pairs: `seen_by` (K,) int32, a frame's index, and `seen` (K,) int32, a point's number.

    A capture that cannot be refined keeps its compensated poses, with a warning that says why. Passes with the object
    turned over are refined on their own, for the background did not turn with it, and then joined with the first.
    """  # fmt: skip
    posed, images = PosedFrames.read(inputs["compensate_poses"] / "poses.json"), inputs["condition"]
    first = refine_pass(posed, images, config, progress, outputs / PLOT_FILE)
    frames, warnings = list(first.posed.frames), list(first.warnings)
    points = [first.points] if first.points else []
    joints: list[dict[str, object]] = []
    for given in posed.turned:
        turned = refine_pass(given, images, config, progress)
        joint = join(first.posed, turned.posed, images, config, progress)
        if joint.fault:
            first_frame, last_frame = given.frames[0].index, given.frames[-1].index
            warnings.append(
                f"frames {first_frame} to {last_frame}, of the object turned over, are left out: {joint.fault}"
            )
        else:
            warnings += [f"of the object turned over: {warning}" for warning in turned.warnings]
            frames += [_moved(frame, joint.to_first) for frame in turned.posed.frames]
            points += [_moved_points(turned.points, joint.to_first)] if turned.points else []
        joints.append({**turned.metrics, **joint.figures})
    posed.model_copy(update={"frames": sorted(frames, key=lambda frame: frame.index), "turned": []}).write(
        outputs / POSES_FILE
    )
    if points:
        _write_points(outputs / POINTS_FILE, points)
    return StageResult({**first.metrics, **({"turned": joints} if joints else {})}, warnings)


def refine_pass(
    posed: PosedFrames, images: Path, config: RefinePosesConfig, progress: Progress, plot: Path | None = None
) -> RefinedPass:
    """Refine the frames of one pass; write a picture of the camera's path to `plot` if they could be refined."""
    if not config.enabled:
        return _unrefined(posed, {}, [])
    attempt, object_only = best_attempt(posed, images, config, progress)
    if attempt.disbelief:
        warning = f"poses were not refined: {attempt.disbelief}. The tracker's poses are used: expect a softer model"
        return _unrefined(posed, attempt.metrics, [warning])
    warnings = []
    if object_only and not posed.turntable:  # else compensate_poses has said so
        warnings.append(
            "the background does not move with the object (a turntable?): poses were refined on the object only"
        )
    refinement, verdict = attempt.refinement, attempt.verdict
    poses = refinement.camera_to_reference.copy()
    for row in verdict.unadjusted:
        poses[row] = posed.frames[row].camera_to_reference
    gains = gains_of_frames(attempt.tracks, [images / frame.file for frame in posed.frames], progress)
    frames = [
        _refined(frame, poses[row], refinement.focal_factor, gains[row])
        for row, frame in enumerate(posed.frames)
        if row not in verdict.faults
    ]
    if plot:
        plot_camera_path(plot, posed, poses, sorted(verdict.faults))
    points: dict[str, NDArray[Any]] = {
        "xyz": attempt.points.xyz.astype(np.float32),
        "rgb": attempt.points.rgb,
        "frames": attempt.points.frames,
        "error_px": attempt.points.error_px.astype(np.float32),
        "seen_by": np.array([frame.index for frame in posed.frames], np.int32)[attempt.tracks.frame],
        "seen": attempt.tracks.point.astype(np.int32),
    }
    warnings += [
        f"frame {posed.frames[row].index} is left out: {fault}" for row, fault in sorted(verdict.faults.items())
    ]
    if verdict.unadjusted:
        numbers = ", ".join(str(posed.frames[row].index) for row in verdict.unadjusted)
        warnings.append(f"frames {numbers} keep their poses as given: too few points shared with other frames")
    per_frame = {
        "corrections": attempt.corrections,
        "dropped": [posed.frames[row].index for row in sorted(verdict.faults)],
    }
    counts = {"refined": True, "object_only": object_only, "points": len(attempt.points.xyz)}
    return RefinedPass(
        posed.model_copy(update={"frames": frames}), counts | attempt.metrics | per_frame, warnings, points
    )


def _moved(frame: PosedFrame, to_first: Array) -> PosedFrame:
    moved = (to_first @ np.array(frame.camera_to_reference)).round(POSE_DECIMALS).tolist()
    return frame.model_copy(update={"camera_to_reference": moved})


def _moved_points(points: Mapping[str, NDArray[Any]], to_first: Array) -> dict[str, NDArray[Any]]:
    xyz = points["xyz"] @ to_first[:3, :3].T + to_first[:3, 3]
    return {**points, "xyz": xyz.astype(np.float32)}


def _write_points(path: Path, passes: Sequence[Mapping[str, NDArray[Any]]]) -> None:
    """Write the points of all passes as one file, numbered on from pass to pass."""
    before = np.cumsum([0, *(len(points["xyz"]) for points in passes)])
    numbered = [
        {**points, "seen": points["seen"] + np.int32(start)} for points, start in zip(passes, before[:-1], strict=True)
    ]
    arrays: dict[str, Any] = {name: np.concatenate([points[name] for points in numbered]) for name in passes[0]}
    np.savez_compressed(path, **arrays)


def best_attempt(
    posed: PosedFrames, images: Path, config: RefinePosesConfig, progress: Progress
) -> tuple[Attempt, bool]:
    """Refine by whole frames; by what the object box shows if the background does not move with the object.

    Returns the first attempt that is believed, else the first, and whether it used the object only.
    """
    attempts: list[Attempt] = []
    offsets = np.array([frame.camera_to_reference for frame in posed.frames])[:, :3, 3] - posed.object.center
    pairs = choose_pairs(offsets, config.neighbours)
    still_px = STILL_SHARE * max(posed.frames[0].width, posed.frames[0].height)
    for object_only in (True,) if posed.turntable else (False, True):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            masks = write_object_masks(posed, folder / "masks") if object_only else None
            progress.start("matching views", 1)
            database = match_frames(
                images, posed.frames, pairs, folder, long_side=config.feature_side, masks=masks,
                max_features=config.max_features * (MASKED_FEATURES if object_only else 1),
            )  # fmt: skip
            progress.advance()
            if not object_only and stationary_share(database, pairs, still_px) > STILL_MATCHES:
                continue
            refinement, points, tracks = refine(posed, images, database, config, progress)
        verdict = check_frames(posed, refinement, config.min_points)
        adjusted = verdict.adjusted(len(posed.frames))
        metrics, corrections = figures_of(posed, refinement, adjusted)
        reason = disbelief(refinement, adjusted, metrics)
        attempts.append(Attempt(refinement, verdict, points, tracks, metrics, corrections, reason))
        if reason is None:
            return attempts[-1], object_only
    return attempts[0], False


def _unrefined(posed: PosedFrames, metrics: Mapping[str, object], warnings: Sequence[str]) -> RefinedPass:
    """Hand the given poses on, but for guessed ones, which nothing has confirmed."""
    kept = [frame for frame in posed.frames if not frame.guessed]
    unconfirmed = [
        f"frame {frame.index} is left out: it had no pose of its own, and refinement could not confirm the guessed one"
        for frame in posed.frames
        if frame.guessed
    ]
    return RefinedPass(
        posed.model_copy(update={"frames": kept}), {"refined": False, **metrics}, [*warnings, *unconfirmed]
    )


def refine(
    posed: PosedFrames, images: Path, database: Path, config: RefinePosesConfig, progress: Progress
) -> tuple[Refinement, SparsePoints, Tracks]:
    """Adjust the poses of all frames from the matches in `database`, whose folder takes temporary files.

    Rounds of triangulation and adjustment as in Schönberger and Frahm 2016, section 4.3 and 4.4 (re-triangulation
    after adjustment), started from known poses instead of image pairs. Frames that their matches misled are then
    registered against the points of the others, without their priors.
    """
    frames = posed.frames
    given = np.array([frame.camera_to_reference for frame in frames])
    distance = camera_distance(posed)
    adjustment = Adjustment(database, frames, images, database.parent)
    first = Tolerance(FIRST_ROUND_ANGLE_DEG, FIRST_ROUND_REPROJECTION * frames[0].intrinsics.fx)
    progress.start("adjusting poses", 1 + len(LATER_ROUNDS))
    guessed = {row for row, frame in enumerate(frames) if frame.guessed}
    sigma, registered, error_before = FIRST_PRIOR_SIGMA, set[int](), float("inf")
    for number, tolerance in enumerate((first, *LATER_ROUNDS)):
        adjustment.triangulate(tolerance)
        errors = adjustment.reprojection_errors()
        if number == 0:
            error_before = float(np.median(np.concatenate(errors))) if any(map(len, errors)) else float("inf")
        weak = [row for row, seen in enumerate(errors) if len(seen) < config.min_points]
        if len(frames) - len(weak) < 3:
            break  # nothing to adjust against
        if number > 0:
            registered |= {row for row in weak if adjustment.register(row, config.min_points)}
        rows = [row for row in range(len(frames)) if row not in weak]
        last = number == len(LATER_ROUNDS)
        adjustment.adjust(
            given[:, :3, 3], sigma * distance / FEATURE_SIGMA_PX, rows, without_prior=guessed,
            refine_focal_length=config.refine_focal and last,
        )  # fmt: skip
        own = [row for row in rows if row not in guessed]
        moved = np.linalg.norm(adjustment.poses()[own, :3, 3] - given[own, :3, 3], axis=1) / distance
        sigma = float(np.clip(np.median(moved) / CHI3_MEDIAN, *PRIOR_SIGMA_RANGE))
        progress.advance(1, points=float(np.median([len(seen) for seen in errors])))

    def result() -> Refinement:
        errors = adjustment.reprojection_errors()
        return Refinement(
            camera_to_reference=adjustment.poses(),
            focal_factor=adjustment.focal_length(0) / frames[0].intrinsics.fx,
            observations=np.array([len(seen) for seen in errors]),
            error_before_px=error_before,
            error_px=np.array([np.median(seen) if len(seen) else np.inf for seen in errors]),
            prior_sigma=sigma,
            registered=sorted(registered),
        )

    misled = check_frames(posed, result(), config.min_points).faults
    again = {row for row in misled if adjustment.register(row, config.min_points)}
    if again:
        registered |= again
        adjustment.triangulate(LATER_ROUNDS[-1])
        seen = [len(errors) for errors in adjustment.reprojection_errors()]
        rows = [row for row in range(len(frames)) if seen[row] >= config.min_points]
        adjustment.adjust(
            given[:, :3, 3],
            sigma * distance / FEATURE_SIGMA_PX,
            rows,
            refine_focal_length=False,
            without_prior=guessed | again,
        )
    return result(), adjustment.points(images, MIN_POINT_FRAMES), adjustment.tracks(MIN_POINT_FRAMES)


def _refined(frame: PosedFrame, camera_to_reference: Array, focal_factor: float, gain: Array) -> PosedFrame:
    focal = round(frame.intrinsics.fx * focal_factor, POSE_DECIMALS)
    return frame.model_copy(
        update={
            "camera_to_reference": camera_to_reference.round(POSE_DECIMALS).tolist(),
            "intrinsics": frame.intrinsics.model_copy(update={"fx": focal, "fy": focal}),
            "gain": None if np.isnan(gain).any() else tuple(gain.round(GAIN_DECIMALS).tolist()),
        }
    )

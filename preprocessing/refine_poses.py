"""The refine_poses stage: bundle adjustment takes the tracker's noise out of the compensated camera poses.

Features of the whole frames (the background carries most of them) are matched between neighbouring views and
triangulated from the compensated poses; cameras and points are then adjusted together, with the compensated
positions as priors that hold the metric scale and the reference frame. Every frame is checked afterwards: one that
cannot be trusted is registered anew or left out and named. Without enough texture the compensated poses stay.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from preprocessing.bundle_adjustment import Adjustment, Tolerance, match_frames
from preprocessing.camera_path import plot_camera_path
from scan2twin.config import RefinePosesConfig
from scan2twin.frames import PosedFrame, PosedFrames
from scan2twin.progress import Progress
from scan2twin.stages import StageInputs, StageResult

Array = NDArray[np.float64]

POSES_FILE = "poses.json"
PLOT_FILE = "camera_path.png"

# Views whose directions from the object differ by more share few features (SIFT matches survive about 50°) …
MAX_PAIR_ANGLE_DEG = 60.0
# … and by less than this add nothing to a nearer one: in a dense capture neighbours are spread, not all next to it.
MIN_PAIR_SPREAD_DEG = 5.0
# The first round finds points from poses that may be off by a degree or two, the later ones from adjusted poses.
# Reprojection in pixels; the first as a share of the focal length (0.03 is 1.7°).
FIRST_ROUND_ANGLE_DEG, FIRST_ROUND_REPROJECTION = 6.0, 0.03
LATER_ROUNDS = (Tolerance(angle_deg=2.0, reprojection_px=8.0), Tolerance(angle_deg=2.0, reprojection_px=4.0))
# Standard deviation of a prior, an axis, as a share of the median camera distance: at first as phones have it (3 mm
# at 60 cm), then as the residuals show, within these bounds.
FIRST_PRIOR_SIGMA = 0.005
PRIOR_SIGMA_RANGE = (0.001, 0.05)
CHI3_MEDIAN = 1.538  # median length of a 3-vector of unit normals
# A frame further from its prior than this many times the median, and by more than the floors, was misled by matches.
OUTLIER_MEDIANS = 6.0
OUTLIER_FLOOR = 0.02  # of the camera distance
OUTLIER_FLOOR_DEG = 1.0
# Given poses with corrections below these (medians over the frames) are good enough where a frame has too few points.
PRECISE, PRECISE_DEG = 0.002, 0.1  # of the camera distance; degrees
MAX_FRAME_ERROR_PX = 2.0  # median reprojection error of a frame; well adjusted ones have 0.2-0.8
MAX_FOCAL_CHANGE = 0.03  # trackers know it to about 1 %; a larger change compensates for something else
MIN_ADJUSTED_SHARE = 2 / 3  # of the frames; with fewer the adjustment as a whole is not believed
MIN_ADJUSTED = 8
MAX_SCALE_CHANGE = 0.01
# Nanometres: the solver visits its unknowns in an order that differs from run to run by 1e-15; the poses do not.
POSE_DECIMALS = 9


@dataclass(frozen=True)
class Refinement:
    """Adjusted poses of N frames and what is known of each."""

    camera_to_reference: Array  # N × 4 × 4
    focal_factor: float  # adjusted focal length / given one, the same for all frames
    observations: NDArray[np.int64]  # points seen by each frame
    error_before_px: float  # median reprojection error with the given poses
    error_px: Array  # N, median reprojection error of each frame; infinite where it sees no point
    prior_sigma: float  # standard deviation of the given positions, an axis, as the residuals show it
    registered: Sequence[int]  # rows registered anew


def run(inputs: StageInputs, outputs: Path, config: RefinePosesConfig, progress: Progress) -> StageResult:
    """Read `compensate_poses/poses.json` and condition's images, write `poses.json` (`PosedFrames`) and a plot.

    A capture that cannot be refined keeps its compensated poses, with a warning that says why.
    """
    posed = PosedFrames.read(inputs["compensate_poses"] / "poses.json")
    if not config.enabled:
        posed.write(outputs / POSES_FILE)
        return StageResult({"refined": False})
    distance = camera_distance(posed)
    with tempfile.TemporaryDirectory() as folder:
        refinement = refine(posed, inputs["condition"], Path(folder), config, progress)
    faults, unadjusted = check_frames(posed, refinement, distance, config.min_points)
    adjusted = [row for row in range(len(posed.frames)) if row not in faults and row not in unadjusted]
    metrics, corrections = _figures(posed, refinement, adjusted)
    if reason := _disbelief(refinement, adjusted, len(posed.frames), metrics):
        posed.write(outputs / POSES_FILE)
        warning = f"poses were not refined: {reason}. The tracker's poses are used: expect a softer model"
        return StageResult({"refined": False} | metrics, [warning])
    poses = refinement.camera_to_reference.copy()
    for row in unadjusted:
        poses[row] = posed.frames[row].camera_to_reference
    frames = [
        _refined(frame, poses[row], refinement.focal_factor)
        for row, frame in enumerate(posed.frames)
        if row not in faults
    ]
    posed.model_copy(update={"frames": frames}).write(outputs / POSES_FILE)
    plot_camera_path(outputs / PLOT_FILE, posed, poses, sorted(faults))
    warnings = [f"frame {posed.frames[row].index} is left out: {fault}" for row, fault in sorted(faults.items())]
    if unadjusted:
        numbers = ", ".join(str(posed.frames[row].index) for row in unadjusted)
        warnings.append(f"frames {numbers} keep their poses as given: too few points shared with other frames")
    per_frame = {"corrections": corrections, "dropped": [posed.frames[row].index for row in sorted(faults)]}
    return StageResult({"refined": True} | metrics | per_frame, warnings)


def refine(posed: PosedFrames, images: Path, folder: Path, config: RefinePosesConfig, progress: Progress) -> Refinement:
    """Adjust the poses of all frames; `folder` takes temporary files.

    Rounds of triangulation and adjustment as in Schönberger and Frahm 2016, section 4.3 and 4.4 (re-triangulation
    after adjustment), started from known poses instead of image pairs.
    """
    frames = posed.frames
    given = np.array([frame.camera_to_reference for frame in frames])
    distance = camera_distance(posed)
    pairs = choose_pairs(given[:, :3, 3] - posed.object.center, config.neighbours)
    progress.start("matching views", 1)
    database = match_frames(
        images, frames, pairs, folder, max_features=config.max_features, long_side=config.feature_side
    )
    progress.advance()
    adjustment = Adjustment(database, frames, images, folder)
    first = Tolerance(FIRST_ROUND_ANGLE_DEG, FIRST_ROUND_REPROJECTION * frames[0].intrinsics.fx)
    progress.start("adjusting poses", 1 + len(LATER_ROUNDS))
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
        adjustment.adjust(given[:, :3, 3], sigma * distance, rows, refine_focal_length=config.refine_focal and last)
        moved = np.linalg.norm(adjustment.poses()[rows, :3, 3] - given[rows, :3, 3], axis=1) / distance
        sigma = float(np.clip(np.median(moved) / CHI3_MEDIAN, *PRIOR_SIGMA_RANGE))
        progress.advance(1, points=float(np.median([len(seen) for seen in errors])))
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


def choose_pairs(offsets: Array, neighbours: int) -> list[tuple[int, int]]:
    """Choose which views to match: for each its `neighbours` nearest by direction from the object, spread out.

    `offsets` (N × 3) are the camera positions relative to the object's centre. Returns sorted pairs of rows.
    """
    directions = offsets / np.maximum(np.linalg.norm(offsets, axis=1, keepdims=True), 1e-12)
    angle_deg = np.degrees(np.arccos(np.clip(directions @ directions.T, -1, 1)))
    pairs = set()
    for row, angles in enumerate(angle_deg):
        near = [other for other in np.argsort(angles, kind="stable") if other != row]
        near = [other for other in near if angles[other] <= MAX_PAIR_ANGLE_DEG]
        chosen: list[int] = []
        for other in near:
            if all(angle_deg[other, one] >= MIN_PAIR_SPREAD_DEG for one in chosen):
                chosen.append(int(other))
        chosen += [int(other) for other in near if other not in chosen]
        pairs |= {(min(row, other), max(row, other)) for other in chosen[:neighbours]}
    return sorted(pairs)


def camera_distance(posed: PosedFrames) -> float:
    """Return the median distance of the cameras from the centre of the object box."""
    positions = np.array([frame.camera_to_reference for frame in posed.frames])[:, :3, 3]
    return float(np.median(np.linalg.norm(positions - posed.object.center, axis=1)))


def check_frames(
    posed: PosedFrames, refinement: Refinement, distance: float, min_points: int
) -> tuple[dict[int, str], list[int]]:
    """Tell which adjusted poses cannot be trusted.

    Returns row → why it must be left out, and the rows that share too few points to be adjusted but may keep the
    pose they had, because the other frames show that the given poses are precise.
    """
    given = np.array([frame.camera_to_reference for frame in posed.frames])
    moved, turned_deg = pose_differences(given, refinement.camera_to_reference)
    well_seen = refinement.observations >= min_points
    if not well_seen.any():
        well_seen[:] = True
    usual, usual_deg = float(np.median(moved[well_seen])), float(np.median(turned_deg[well_seen]))
    precise = bool(usual <= PRECISE * distance and usual_deg <= PRECISE_DEG)
    moved_limit = max(OUTLIER_MEDIANS * usual, OUTLIER_FLOOR * distance)
    turned_limit = max(OUTLIER_MEDIANS * usual_deg, OUTLIER_FLOOR_DEG)
    faults, unadjusted = {}, []
    for row, (seen, error_px) in enumerate(zip(refinement.observations, refinement.error_px, strict=True)):
        if seen < min_points and precise:
            unadjusted.append(row)
        elif seen < min_points:
            faults[row] = (
                f"only {seen} points seen in other frames too (at least {min_points}): blurred, or too far off"
            )
        elif error_px > MAX_FRAME_ERROR_PX:
            faults[row] = f"its points are {error_px:.1f} px off after adjustment; did something move?"
        elif moved[row] > moved_limit or turned_deg[row] > turned_limit:
            faults[row] = (
                f"adjustment moved it by {moved[row] / distance:.1%} of its distance and {turned_deg[row]:.1f}°, "
                "far more than the others; its matches mislead"
            )
    return faults, unadjusted


def pose_differences(a: Array, b: Array) -> tuple[Array, Array]:
    """Return distances between positions, and angles between rotations in degrees, of two stacks of N × 4 × 4 poses."""
    turn = Rotation.from_matrix(b[:, :3, :3]) * Rotation.from_matrix(a[:, :3, :3]).inv()
    return np.linalg.norm(b[:, :3, 3] - a[:, :3, 3], axis=1), np.degrees(turn.magnitude())


def _disbelief(refinement: Refinement, adjusted: Sequence[int], count: int, figures: dict[str, float]) -> str | None:
    """Say why the refinement as a whole is not believed; None if it is."""
    if len(adjusted) < max(MIN_ADJUSTED, MIN_ADJUSTED_SHARE * count):
        return (
            f"only {len(adjusted)} of {count} frames could be adjusted; the pictures have too little texture, or "
            "are blurred: put the object on a newspaper or a patterned cloth"
        )
    if not figures["reprojection_px"] < refinement.error_before_px:
        return "adjustment did not lower the reprojection error"
    if abs(refinement.focal_factor - 1) > MAX_FOCAL_CHANGE:
        return f"adjustment changed the focal length by {refinement.focal_factor - 1:+.1%}, more than is plausible"
    if abs(figures["scale_change"]) > MAX_SCALE_CHANGE:
        return f"adjustment changed the scale by {figures['scale_change']:+.1%}, more than is plausible"
    return None


def _figures(
    posed: PosedFrames, refinement: Refinement, adjusted: Sequence[int]
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Return the figures of the whole and of every adjusted frame, lengths in millimetres of the reference frame."""
    given = np.array([frame.camera_to_reference for frame in posed.frames])
    moved, turned_deg = pose_differences(given, refinement.camera_to_reference)
    fit = (
        pycolmap.estimate_sim3d(given[adjusted, :3, 3], refinement.camera_to_reference[adjusted, :3, 3])
        if len(adjusted) >= 3
        else None
    )
    figures = {
        "frames": len(posed.frames),
        "adjusted": len(adjusted),
        "registered_anew": len(refinement.registered),
        "reprojection_before_px": refinement.error_before_px,
        "reprojection_px": float(np.median(refinement.error_px[adjusted])) if adjusted else float("inf"),
        "points_per_frame": float(np.median(refinement.observations)),
        "tracker_sigma_mm": refinement.prior_sigma * camera_distance(posed) * 1000,
        "median_correction_mm": float(np.median(moved[adjusted]) * 1000) if adjusted else 0.0,
        "median_correction_deg": float(np.median(turned_deg[adjusted])) if adjusted else 0.0,
        "focal_change": refinement.focal_factor - 1,
        "scale_change": float(fit.scale) - 1 if fit is not None else 0.0,
    }
    corrections = [
        {"frame": posed.frames[row].index, "mm": float(moved[row] * 1000), "deg": float(turned_deg[row])}
        for row in adjusted
    ]
    return {name: value for name, value in figures.items() if np.isfinite(value)}, corrections


def _refined(frame: PosedFrame, camera_to_reference: Array, focal_factor: float) -> PosedFrame:
    focal = round(frame.intrinsics.fx * focal_factor, POSE_DECIMALS)
    return frame.model_copy(
        update={
            "camera_to_reference": camera_to_reference.round(POSE_DECIMALS).tolist(),
            "intrinsics": frame.intrinsics.model_copy(update={"fx": focal, "fy": focal}),
        }
    )

"""Which adjusted poses can be trusted, frame by frame and as a whole, and the figures that tell."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pycolmap
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from scan2twin.frames import PosedFrames

Array = NDArray[np.float64]

# A frame further from its prior than this many times the median, and by more than the floors, was misled by matches.
OUTLIER_MEDIANS = 6.0
OUTLIER_FLOOR = 0.02  # of the camera distance
OUTLIER_FLOOR_DEG = 1.0
# Given poses with corrections below these (medians over the frames) are good enough where a frame has too few points.
PRECISE, PRECISE_DEG = 0.002, 0.1  # of the camera distance; degrees
GUESSED_POINTS = 2  # times the usual number: nothing but its points speaks for a frame whose pose was guessed
# A frame registered anew is believed against its prior if it is adjusted as well as the others: at least this share of
# their points (medians), at most so many times their error. Blurred frames, which mislead, have fewer and are worse.
SURE_POINTS, SURE_ERROR = 0.7, 1.3
MAX_FRAME_ERROR_PX = 2.0  # median reprojection error of a frame; well adjusted ones have 0.2-0.8
MAX_FOCAL_CHANGE = 0.03  # trackers know it to about 1 %; a larger change compensates for something else
MIN_ADJUSTED_SHARE = 2 / 3  # of the frames; with fewer the adjustment as a whole is not believed
MIN_ADJUSTED = 8
MAX_SCALE_CHANGE = 0.01


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


@dataclass(frozen=True)
class Verdict:
    """What came of each of N frames: in neither of these, it was adjusted."""

    faults: dict[int, str]  # row → why it must be left out
    unadjusted: Sequence[int]  # rows that keep the poses they had

    def adjusted(self, count: int) -> list[int]:
        """Return the rows of the `count` frames that were adjusted and are trusted."""
        return [row for row in range(count) if row not in self.faults and row not in self.unadjusted]


def camera_distance(posed: PosedFrames) -> float:
    """Return the median distance of the cameras from the centre of the object box."""
    positions = np.array([frame.camera_to_reference for frame in posed.frames])[:, :3, 3]
    return float(np.median(np.linalg.norm(positions - posed.object.center, axis=1)))


def pose_differences(a: Array, b: Array) -> tuple[Array, Array]:
    """Return distances between positions, and angles between rotations in degrees, of two stacks of N × 4 × 4 poses."""
    turn = Rotation.from_matrix(b[:, :3, :3]) * Rotation.from_matrix(a[:, :3, :3]).inv()
    return np.linalg.norm(b[:, :3, 3] - a[:, :3, 3], axis=1), np.degrees(turn.magnitude())


def check_frames(posed: PosedFrames, refinement: Refinement, min_points: int) -> Verdict:
    """Tell which adjusted poses cannot be trusted.

    Frames that share too few points to be adjusted keep the pose they had if the other frames show that the given
    poses are precise. A guessed pose needs more points, and may be as far off as it was; so may the pose of a frame
    registered anew that then fits as well as the others.
    """
    given = np.array([frame.camera_to_reference for frame in posed.frames])
    distance = camera_distance(posed)
    moved, turned_deg = pose_differences(given, refinement.camera_to_reference)
    guessed = np.array([frame.guessed for frame in posed.frames])
    usual_rows = (refinement.observations >= min_points) & ~guessed
    if not usual_rows.any():
        usual_rows[:] = True
    usual, usual_deg = float(np.median(moved[usual_rows])), float(np.median(turned_deg[usual_rows]))
    precise = bool(usual <= PRECISE * distance and usual_deg <= PRECISE_DEG)
    moved_limit = max(OUTLIER_MEDIANS * usual, OUTLIER_FLOOR * distance)
    turned_limit = max(OUTLIER_MEDIANS * usual_deg, OUTLIER_FLOOR_DEG)
    sure = (refinement.observations >= SURE_POINTS * np.median(refinement.observations)) & (
        refinement.error_px <= SURE_ERROR * np.median(refinement.error_px)
    )
    faults: dict[int, str] = {}
    unadjusted: list[int] = []
    for row, (seen, error_px) in enumerate(zip(refinement.observations, refinement.error_px, strict=True)):
        if guessed[row] and (seen < GUESSED_POINTS * min_points or error_px > MAX_FRAME_ERROR_PX):
            faults[row] = "it had no pose of its own, and its picture does not confirm the guessed one"
        elif guessed[row]:
            continue
        elif seen < min_points and precise:
            unadjusted.append(row)
        elif seen < min_points:
            faults[row] = (
                f"only {seen} points seen in other frames too (at least {min_points}): blurred, or too far off"
            )
        elif error_px > MAX_FRAME_ERROR_PX:
            faults[row] = f"its points are {error_px:.1f} px off after adjustment; did something move?"
        elif row in refinement.registered and sure[row]:
            continue
        elif moved[row] > moved_limit or turned_deg[row] > turned_limit:
            faults[row] = (
                f"adjustment moved it by {moved[row] / distance:.1%} of its distance and {turned_deg[row]:.1f}°, "
                "far more than the others; its matches mislead"
            )
    return Verdict(faults, unadjusted)


def disbelief(refinement: Refinement, adjusted: Sequence[int], figures: dict[str, float]) -> str | None:
    """Say why the refinement as a whole is not believed; None if it is."""
    count = len(refinement.observations)
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


def figures_of(
    posed: PosedFrames, refinement: Refinement, adjusted: Sequence[int]
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Return the figures of the whole and of every adjusted frame, lengths in millimetres of the reference frame."""
    given = np.array([frame.camera_to_reference for frame in posed.frames])
    moved, turned_deg = pose_differences(given, refinement.camera_to_reference)
    # Guessed poses say nothing of the scale.
    sized = [row for row in adjusted if not posed.frames[row].guessed]
    fit = (
        pycolmap.estimate_sim3d(given[sized, :3, 3], refinement.camera_to_reference[sized, :3, 3])
        if len(sized) >= 3
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

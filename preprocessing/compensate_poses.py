"""The compensate_poses stage: camera poses relative to the reference anchor, and the unit box.

A tracker such as ARCore corrects its world frame while it runs, so world poses of different frames do not belong
together; the camera relative to the anchor at the same moment does. What is left is the jitter of the anchor's own
pose, smoothed between corrections. Quaternions are [x, y, z, w], rotations take camera or anchor to world.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from preprocessing.object_box import box_from_cameras
from scan2twin.capture.models import ObjectBox
from scan2twin.config import CompensatePosesConfig
from scan2twin.errors import CaptureError
from scan2twin.frames import ConditionedFrame, ConditionedFrames, Matrix4, PosedFrame, PosedFrames
from scan2twin.progress import Progress
from scan2twin.stages import StageInputs, StageResult

Array = NDArray[np.float64]

POSES_FILE = "poses.json"
# A step of the anchor's pose between two frames is a correction of the world frame when it is this many times the
# median step, for jitter's steps (chi-distributed, 3 degrees of freedom) reach 5 medians once in 10^12 …
CORRECTION_MEDIANS = 5.0
# … but never below these (a still anchor jitters by less), and always above (no anchor jitters by more).
CORRECTION_M = (0.002, 0.010)
CORRECTION_DEG = (0.2, 1.0)
# Width of the smoothing window, frames. 2 is where the error on the rendered phone capture is smallest; it is flat
# between 1.5 and 4.
SMOOTHING_SIGMA = 2.0
LIMITED_WEIGHT = 0.5  # trust in a pose while the tracker calls its tracking limited
MAX_ANCHOR_DISTANCE_M = 8.0  # ARCore developer guide, "Working with anchors": keep objects within 8 m of theirs
MAX_TILT_DEG = 5.0  # anchors on a floor or table are level within 1-2°; more and the model visibly leans


@dataclass(frozen=True)
class Correction:
    """A correction of the tracker's world frame between the frame in `row` and the one before."""

    row: int
    translation_m: float
    rotation_deg: float


def run(inputs: StageInputs, outputs: Path, config: CompensatePosesConfig, progress: Progress) -> StageResult:
    """Read `condition/cameras.json`, write `poses.json` (`PosedFrames`).

    Raises:
        CaptureError: the capture has a reference anchor but a frame lacks its pose, or the capture has no object
            box and the cameras do not look at one place.

    """
    conditioned = ConditionedFrames.read(inputs["condition"] / "cameras.json")
    frames = conditioned.frames
    progress.start("compensating poses", len(frames))
    rotation, position = _camera_poses(frames)
    metrics: dict[str, object] = {"frames": len(frames)}
    warnings: list[str] = []
    if conditioned.reference_anchor is not None:
        anchor = _anchor_poses(frames, conditioned.reference_anchor)
        corrections = find_corrections(*anchor)
        steady = smooth_anchor(*anchor, [c.row for c in corrections]) if config.smooth_anchor else anchor
        rotation, position = relative_poses(*steady, rotation, position)
        figures, warnings = _describe(frames, anchor, steady, corrections, position)
        metrics |= figures
    camera_to_reference = pose_matrices(rotation, position)
    box = conditioned.object
    if box is None:
        box = box_from_cameras(camera_to_reference, frames)
        warnings.append(
            f"the capture has no object box: taken from where the cameras look, a cube of {box.size[0]:.3g} "
            f"{'m' if conditioned.metric else 'units'}; give `object` in capture.json for a tighter one"
        )
    if limited := [frame.index for frame in frames if frame.tracking == "limited"]:
        warnings.append(f"tracking was limited at frames {_listed(limited)}: their poses count less")
    PosedFrames(
        capture_id=conditioned.capture_id,
        metric=conditioned.metric,
        object=box,
        unit_to_reference=unit_to_reference(box),
        frames=[
            PosedFrame(
                index=frame.index,
                file=frame.file,
                width=frame.width,
                height=frame.height,
                intrinsics=frame.intrinsics,
                camera_to_reference=matrix.tolist(),
                weight=LIMITED_WEIGHT if frame.tracking == "limited" else 1.0,
            )
            for frame, matrix in zip(frames, camera_to_reference, strict=True)
        ],
    ).write(outputs / POSES_FILE)
    progress.advance(len(frames))
    return StageResult(metrics, warnings)


def relative_poses(
    anchor_rotation: Rotation, anchor_position: Array, camera_rotation: Rotation, camera_position: Array
) -> tuple[Rotation, Array]:
    """Return camera-to-anchor rotations and positions (N × 3) from poses in one world frame a row.

    q_rel = conj(q_a) ⊗ q_c, p_rel = R(q_a)ᵀ (p_c − p_a) (docs/capture-format.md). Any rigid change of a row's
    world frame leaves its result as it is.
    """
    to_anchor = anchor_rotation.inv()
    return to_anchor * camera_rotation, to_anchor.apply(camera_position - anchor_position)


def find_corrections(rotation: Rotation, position: Array) -> list[Correction]:
    """Find where the world frame jumped, from N anchor-to-world poses in recording order (metres).

    The anchor does not move, so a step of its pose is jitter or a correction. See the constants for the border.
    """
    if len(position) < 2:
        return []
    steps_m = np.linalg.norm(np.diff(position, axis=0), axis=1)
    steps_deg = np.degrees((rotation[1:] * rotation[:-1].inv()).magnitude())
    limit_m = np.clip(CORRECTION_MEDIANS * np.median(steps_m), *CORRECTION_M)
    limit_deg = np.clip(CORRECTION_MEDIANS * np.median(steps_deg), *CORRECTION_DEG)
    jumps = np.flatnonzero((steps_m > limit_m) | (steps_deg > limit_deg))
    return [Correction(int(k) + 1, float(steps_m[k]), float(steps_deg[k])) for k in jumps]


def smooth_anchor(rotation: Rotation, position: Array, starts: Sequence[int]) -> tuple[Rotation, Array]:
    """Smooth N anchor-to-world poses between corrections; a new piece begins at each row in `starts`.

    Inside a piece the pose is a local straight line (Gaussian window of `SMOOTHING_SIGMA` frames) through the
    positions and the rotation vectors relative to the piece's mean, so slow drift passes unchanged and nothing is
    averaged across a correction: jitter shrinks and the camera's path is not bent.
    """
    quaternions, positions = [], []
    borders = [0, *starts, len(position)]
    for start, end in pairwise(borders):
        piece, mean = slice(start, end), rotation[start:end].mean()
        smooth = _local_lines(np.hstack([position[piece], (rotation[piece] * mean.inv()).as_rotvec()]))
        positions.append(smooth[:, :3])
        quaternions.append((Rotation.from_rotvec(smooth[:, 3:]) * mean).as_quat())
    return Rotation.from_quat(np.concatenate(quaternions)), np.concatenate(positions)


def _local_lines(values: Array) -> Array:
    """Fit a Gaussian-weighted line through the rows of `values` (N × D) round each row; return it at that row."""
    if len(values) < 3:
        return values
    offset = np.arange(len(values))[None, :] - np.arange(len(values))[:, None]  # N × N, frames
    weight = np.exp(-0.5 * (offset / SMOOTHING_SIGMA) ** 2)
    s0, s1, s2 = ((weight * offset**power).sum(axis=1, keepdims=True) for power in (0, 1, 2))
    fit: Array = (s2 * (weight @ values) - s1 * ((weight * offset) @ values)) / (s0 * s2 - s1**2)
    return fit


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


def _camera_poses(frames: Sequence[ConditionedFrame]) -> tuple[Rotation, Array]:
    poses = [frame.pose_world for frame in frames]
    return Rotation.from_quat([pose.q for pose in poses]), np.array([pose.p for pose in poses])


def _anchor_poses(frames: Sequence[ConditionedFrame], reference_anchor: str) -> tuple[Rotation, Array]:
    if missing := [frame.index for frame in frames if frame.anchor is None]:
        raise CaptureError(
            f"cameras.json: frames {_listed(missing)} have no pose of the reference anchor "
            f"{reference_anchor!r}; run validate again, which leaves such frames out"
        )
    anchors = [frame.anchor for frame in frames if frame.anchor is not None]
    return Rotation.from_quat([anchor.q for anchor in anchors]), np.array([anchor.p for anchor in anchors])


def _describe(
    frames: Sequence[ConditionedFrame],
    anchor: tuple[Rotation, Array],
    steady: tuple[Rotation, Array],
    corrections: Sequence[Correction],
    position: Array,
) -> tuple[dict[str, object], list[str]]:
    """Return the figures and the warnings of a compensation; `position` (N × 3) is relative to the anchor."""
    tilt_deg = anchor_tilt_deg(anchor[0])
    distance_m = float(np.median(np.linalg.norm(position, axis=1)))
    figures: dict[str, object] = {
        "corrections": [
            {"frame": frames[c.row].index, "translation_m": c.translation_m, "rotation_deg": c.rotation_deg}
            for c in corrections
        ],
        "anchor_jitter_mm": float(np.median(np.linalg.norm(steady[1] - anchor[1], axis=1)) * 1000),
        "anchor_jitter_deg": float(np.degrees(np.median((steady[0] * anchor[0].inv()).magnitude()))),
        "anchor_tilt_deg": tilt_deg,
        "median_distance_m": distance_m,
    }
    warnings = []
    if corrections:
        warnings.append(
            f"the tracker corrected its world frame before frames {_listed(frames[c.row].index for c in corrections)}, "
            f"by up to {max(c.translation_m for c in corrections) * 100:.1f} cm and "
            f"{max(c.rotation_deg for c in corrections):.1f}°; compensated, nothing to do"
        )
    if tilt_deg > MAX_TILT_DEG:
        warnings.append(f"the anchor leans by {tilt_deg:.0f}° from upright, and so will the model; place it on a level")
    if distance_m > MAX_ANCHOR_DISTANCE_M:
        warnings.append(f"the cameras are {distance_m:.0f} m from the anchor; place it on the object for true poses")
    return figures, warnings


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))

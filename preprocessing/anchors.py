"""Anchors of a tracker: where each was seen, its jitter and jumps, and cameras relative to the best of them.

An anchor stands still, so steps of its pose are jitter, slow drift, or corrections of the tracker's world frame.
Rotations and positions of anchors and cameras take anchor or camera to world, unless a name says otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from scan2twin.capture.models import FrameRecord, TrackedAnchor
from scan2twin.frames import ConditionedFrame

Array = NDArray[np.float64]
Poses = tuple[Rotation, Array]  # N rotations and N × 3 positions

# A step of the anchor's pose between two frames is a correction of the world frame when it is this many times the
# median step, for jitter's steps (chi-distributed, 3 degrees of freedom) reach 5 medians once in 10^12 …
CORRECTION_MEDIANS = 5.0
# … but never below these (a still anchor jitters by less), and always above (no anchor jitters by more).
CORRECTION_M = (0.002, 0.010)
CORRECTION_DEG = (0.2, 1.0)
# Width of the smoothing window, frames. 2 is where the error on the rendered phone capture is smallest; it is flat
# between 1.5 and 4.
SMOOTHING_SIGMA = 2.0
MAX_ANCHOR_DISTANCE_M = 8.0  # ARCore developer guide, "Working with anchors": keep objects within 8 m of theirs
MIN_COMMON_FRAMES = 3  # frames that must show two anchors together to know how they stand to each other
MAX_GAP_FRAMES = 3  # frames in a row without a pose; the pose of a longer gap cannot be guessed from its ends


@dataclass(frozen=True)
class Correction:
    """A correction of the tracker's world frame between the frame in `row` and the one before."""

    row: int
    translation_m: float
    rotation_deg: float


@dataclass(frozen=True)
class AnchorTrack:
    """The poses (anchor to world) of one anchor in the frames where it was tracked."""

    rows: NDArray[np.intp]  # of the frames, ascending
    rotation: Rotation
    position: Array  # (len(rows), 3), metres

    @property
    def poses(self) -> Poses:
        """Rotations and positions."""
        return self.rotation, self.position


def tracked_anchors(frame: FrameRecord | ConditionedFrame) -> list[TrackedAnchor]:
    """Return the anchors that were tracked in `frame`, the reference anchor first; none if the camera was lost."""
    anchors = [*([frame.anchor] if frame.anchor else []), *(frame.support or [])]
    return [] if frame.tracking == "lost" else [anchor for anchor in anchors if anchor.tracked]


def has_pose(frame: FrameRecord | ConditionedFrame, reference_anchor: str | None) -> bool:
    """Tell whether the tracker knew where the camera of `frame` was, relative to an anchor if there is a reference."""
    return frame.tracking != "lost" and (reference_anchor is None or bool(tracked_anchors(frame)))


def passes_of(frames: Sequence[FrameRecord | ConditionedFrame], reference_anchor: str | None) -> list[str | None]:
    """Return for each frame in recording order the object's anchor at that time: another one once it was turned over.

    A frame without the object's anchor is of the same pass as the frames round it; None where those are of different
    passes, for then the object was just being turned, or in a capture without such anchors.
    """
    own = [frame.anchor.id if frame.anchor else None for frame in frames]
    if reference_anchor is None or not any(own):
        return [reference_anchor] * len(frames)
    before, after = _last_known(own), _last_known(own[::-1])[::-1]
    around = [(one or other, other or one) for one, other in zip(before, after, strict=True)]
    return [one if one == other else None for one, other in around]


def _last_known(ids: Sequence[str | None]) -> list[str | None]:
    known: list[str | None] = []
    for id_ in ids:
        known.append(id_ or (known[-1] if known else None))
    return known


def short_gaps(posed: Sequence[bool]) -> list[bool]:
    """Return for each frame in recording order whether it lacks a pose that its neighbours' poses may stand in for.

    So it is in gaps of at most `MAX_GAP_FRAMES` frames between frames with poses (`posed`).
    """
    runs = [(known, len(list(run))) for known, run in groupby(posed)]
    last = len(runs) - 1
    short = [not known and count <= MAX_GAP_FRAMES and 0 < k < last for k, (known, count) in enumerate(runs)]
    return [bridged for bridged, (_, count) in zip(short, runs, strict=True) for _ in range(count)]


def anchor_tracks(frames: Sequence[ConditionedFrame]) -> dict[str, AnchorTrack]:
    """Return for every anchor that was ever tracked its poses, by its id."""
    seen: dict[str, list[tuple[int, TrackedAnchor]]] = {}
    for row, frame in enumerate(frames):
        for anchor in tracked_anchors(frame):
            seen.setdefault(anchor.id, []).append((row, anchor))
    return {
        id_: AnchorTrack(
            rows=np.array([row for row, _ in found]),
            rotation=Rotation.from_quat([anchor.q for _, anchor in found]),  # normalises
            position=np.array([anchor.p for _, anchor in found], np.float64),
        )
        for id_, found in seen.items()
    }


def relative_poses(
    anchor_rotation: Rotation, anchor_position: Array, camera_rotation: Rotation, camera_position: Array
) -> Poses:
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


def smooth_anchor(rotation: Rotation, position: Array, starts: Sequence[int]) -> Poses:
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


def best_anchors(tracks: Mapping[str, AnchorTrack], reference_anchor: str, camera_position: Array) -> list[str | None]:
    """Choose for each of N cameras (N × 3, in world frames) the tracked anchor nearest to it; None where there is none.

    The error of an anchor's rotation moves a camera the more, the further off it is. A support anchor counts up to
    `MAX_ANCHOR_DISTANCE_M`, and only if enough frames show it together with the reference anchor.
    """
    chosen: list[str | None] = [None] * len(camera_position)
    nearest = np.full(len(camera_position), np.inf)
    for id_ in sorted(tracks, key=lambda id_: id_ != reference_anchor):  # the reference wins a tie
        track = tracks[id_]
        if id_ != reference_anchor and len(_common_rows(tracks, reference_anchor, id_)) < MIN_COMMON_FRAMES:
            continue
        distance = np.linalg.norm(camera_position[track.rows] - track.position, axis=1)
        for row, metres in zip(track.rows, distance, strict=True):
            if metres < nearest[row] and (id_ == reference_anchor or metres <= MAX_ANCHOR_DISTANCE_M):
                nearest[row], chosen[row] = metres, id_
    return chosen


def support_to_reference(tracks: Mapping[str, AnchorTrack], reference_anchor: str, support: str) -> tuple[Poses, float]:
    """Return how anchor `support` stands to the reference anchor, and how much that varies (metres, median).

    One rotation and position (1, 3): support to reference, the middle of all frames that show both.
    """
    rows = _common_rows(tracks, reference_anchor, support)
    reference, other = tracks[reference_anchor], tracks[support]
    at_reference, at_other = np.searchsorted(reference.rows, rows), np.searchsorted(other.rows, rows)
    rotation, position = relative_poses(
        reference.rotation[at_reference], reference.position[at_reference],
        other.rotation[at_other], other.position[at_other],
    )  # fmt: skip
    middle = np.median(position, axis=0, keepdims=True)
    spread = float(np.median(np.linalg.norm(position - middle, axis=1)))
    return (Rotation.concatenate([rotation.mean()]), middle), spread


def _common_rows(tracks: Mapping[str, AnchorTrack], a: str, b: str) -> NDArray[np.intp]:
    rows: NDArray[np.intp] = np.intersect1d(tracks[a].rows, tracks[b].rows, assume_unique=True)
    return rows


def interpolate_poses(times: Array, sample_times: Array, rotation: Rotation, position: Array) -> Poses:
    """Return the poses at `times` (M,) from samples at strictly increasing `sample_times` (N ≥ 2,), seconds.

    Positions are linear and rotations turn steadily along the shorter arc, q₀ ⊗ exp(s · log(q₀⁻¹ ⊗ q₁)) (Slerp,
    Shoemake 1985), between the samples round a time; before the first and after the last they go on as there.
    """
    after = np.clip(np.searchsorted(sample_times, times, side="right"), 1, len(sample_times) - 1)
    before = after - 1
    share = (times - sample_times[before]) / (sample_times[after] - sample_times[before])
    turn = (rotation[before].inv() * rotation[after]).as_rotvec()
    return (
        rotation[before] * Rotation.from_rotvec(share[:, None] * turn),
        position[before] + share[:, None] * (position[after] - position[before]),
    )

"""Where a part stood after it was turned over: the rigid transform between the passes of one capture.

Each pass has metric poses of its own, and the background stood still while the part turned. So only points of the
part may link the passes: those that lie within its box and above what it stands on, in either pass. They are matched
by what their surroundings look like, and one rotation and shift must bring most of them together.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from preprocessing.bundle_adjustment import Adjustment, Tolerance, Tracks, match_frames
from preprocessing.crop import box_corners, project
from preprocessing.matching import choose_pairs, write_object_masks
from preprocessing.rigid_fit import SEED, agree_rigid, fit_rigid
from scan2twin.config import RefinePosesConfig
from scan2twin.frames import PosedFrame, PosedFrames
from scan2twin.progress import Progress

Array = NDArray[np.float64]
Descriptors = NDArray[np.float32]

TRIANGULATION = Tolerance(angle_deg=2.0, reprojection_px=4.0)
MIN_POINT_FRAMES = 2  # wrong ones find no partner
# Lengths as shares of the diagonal of the object's box.
BOX_ROOM = 0.05  # that the part may reach beyond its box
FLOOR_ROOM = 0.03  # above the lowest points: the support's own points, and an anchor that leans by 2°
FLOOR_SHARE = 0.02  # of the points may lie below the floor: mistakes of triangulation
PAIR_TOLERANCE = 0.015  # between a point and its partner: triangulation from tracker's poses is good to about 0.5 %
SHORTEST_SIDE = 0.1
DISTINCT = 0.85  # distance of descriptors to the best match as a share of that to the next (Lowe 2004, section 7.1)
ALIKE = 0.75  # cosine of descriptors of points that a found transform brings together
BLOCK = 2048  # descriptors compared at once: 2048 × 20,000 float32 are 160 MB
MIN_PAIRS = 15  # that agree; by chance 6 do
MAX_ERROR_PX = 6.0  # median, of one pass's points in the other's frames
MAX_SPREAD = 0.01
RESAMPLED = 100
REPROJECTION_SCALE_PX = 1.5  # beyond, residuals count less and less (Cauchy)


@dataclass(frozen=True)
class ObjectPoints:
    """Points of the part in one pass, and the features that saw them."""

    xyz: Array  # (N, 3), in the pass's frame
    tracks: Tracks  # of these points
    descriptors: Descriptors  # (K, 128), of the tracks' features


@dataclass(frozen=True)
class Joint:
    """How a pass stands to the first one, and how well that is known; `fault` says why it is not believed."""

    to_first: Array = field(default_factory=lambda: np.eye(4))  # rigid
    pairs: int = 0  # points of the object that both passes see, and that agree
    error_px: float = math.inf  # median, of one pass's points in the other's frames
    spread: float = math.inf  # standard error of where it puts the corners of the box, as a share of its diagonal

    @property
    def fault(self) -> str | None:
        """Why the passes cannot be joined, and what to do; None if they can."""
        remedy = (
            "take more photos from low down, of the sides that both passes see, and mark a part that has no texture"
        )
        if self.pairs < MIN_PAIRS:
            return (
                f"how the passes fit together is not known, for only {self.pairs} of the object's points are seen in "
                f"both (at least {MIN_PAIRS}); {remedy}"
            )
        if self.spread > MAX_SPREAD:
            return f"the passes fit together only roughly (to {self.spread:.1%} of the object's size); {remedy}"
        if self.error_px > MAX_ERROR_PX:
            return (
                f"the passes do not fit together (points of one are {self.error_px:.0f} px off in the other); did the "
                f"object change its shape? else {remedy}"
            )
        return None

    @property
    def figures(self) -> dict[str, object]:
        """For the report."""
        figures = {"error_px": self.error_px, "spread": self.spread}
        known = {name: value for name, value in figures.items() if math.isfinite(value)}
        return {"joined": self.fault is None, "pairs": self.pairs, **known}


def join(first: PosedFrames, turned: PosedFrames, images: Path, config: RefinePosesConfig, progress: Progress) -> Joint:
    """Find the transform from the frame of the pass `turned` to that of `first`."""
    progress.start("joining the passes", 3)
    points = []
    for posed in (first, turned):
        points.append(object_points(posed, images, config))
        progress.advance()
    a, b = points
    diagonal = float(np.linalg.norm(first.object.size))
    pairs = match_points(a, b)
    found = agree_rigid(b.xyz[pairs[:, 1]], a.xyz[pairs[:, 0]], PAIR_TOLERANCE * diagonal, SHORTEST_SIDE * diagonal)
    progress.advance()
    if found is None:
        return Joint()
    rotation, shift, agreed = found
    if (count := len(np.unique(pairs[agreed, 0]))) < MIN_PAIRS:
        return Joint(pairs=count)
    more = match_nearby(a, b, b.xyz @ rotation.T + shift, PAIR_TOLERANCE * diagonal)
    pairs = np.unique(np.vstack([pairs[agreed], more]), axis=0)
    to_first, errors = adjust(first.frames, turned.frames, a, b, pairs, rotation, shift)
    spread = spread_of(b.xyz[pairs[:, 1]], a.xyz[pairs[:, 0]], box_corners(first.object)) / diagonal
    return Joint(to_first, len(pairs), float(np.median(errors)), spread)


def spread_of(source: Array, target: Array, places: Array) -> float:
    """Return how far the fit of pairs of points (N, 3) varies at `places` (M, 3) of the target, root mean square.

    Bootstrap (Efron 1979): fits of as many pairs, drawn from the same ones with repetition.
    """
    drawn = np.random.default_rng(SEED).integers(len(source), size=(RESAMPLED, len(source)))
    R, t = fit_rigid(source[drawn], target[drawn])
    rotation, shift = fit_rigid(source, target)
    moved = (places - shift) @ rotation @ np.swapaxes(R, 1, 2) + t[:, None]
    return float(np.sqrt(np.square(moved - places).sum(axis=2).mean()))


def object_points(posed: PosedFrames, images: Path, config: RefinePosesConfig) -> ObjectPoints:
    """Triangulate what the object's box shows of one pass; keep what lies in it and above what the object stands on."""
    offsets = np.array([frame.camera_to_reference for frame in posed.frames])[:, :3, 3] - posed.object.center
    with tempfile.TemporaryDirectory(prefix="scan2twin-join-") as name:
        folder = Path(name)
        database = match_frames(
            images, posed.frames, choose_pairs(offsets, config.neighbours), folder, long_side=config.feature_side,
            masks=write_object_masks(posed, folder / "masks"), max_features=config.max_features,
        )  # fmt: skip
        adjustment = Adjustment(database, posed.frames, images, folder)
        adjustment.triangulate(TRIANGULATION)
        xyz = adjustment.points(images, MIN_POINT_FRAMES).xyz
        tracks = adjustment.tracks(MIN_POINT_FRAMES)
        descriptors = adjustment.descriptors(tracks)
    kept = on_object(xyz, posed)
    seen = kept[tracks.point]
    number = np.cumsum(kept) - 1
    return ObjectPoints(
        xyz[kept],
        Tracks(
            frame=tracks.frame[seen], point=number[tracks.point[seen]], xy=tracks.xy[seen], scale=tracks.scale[seen],
            feature=tracks.feature[seen],
        ),
        descriptors[seen],
    )  # fmt: skip


def on_object(xyz: Array, posed: PosedFrames) -> NDArray[np.bool_]:
    """Tell which points (N, 3) lie in the object's box and above what it stands on, the lowest that is seen there."""
    size = np.array(posed.object.size)
    diagonal = float(np.linalg.norm(size))
    within: NDArray[np.bool_] = np.all(np.abs(xyz - posed.object.center) < size / 2 + BOX_ROOM * diagonal, axis=1)
    if within.any():
        within &= xyz[:, 1] > np.quantile(xyz[within, 1], FLOOR_SHARE) + FLOOR_ROOM * diagonal
    return within


def match_points(a: ObjectPoints, b: ObjectPoints) -> NDArray[np.int64]:
    """Return pairs (M, 2) of points that look alike: of features that are each other's best match, and distinct."""
    if not len(a.descriptors) or not len(b.descriptors):
        return np.empty((0, 2), np.int64)
    forward, backward = _best(a, b), _best(b, a)
    mutual = [(a.tracks.point[k], point) for k, point in enumerate(forward) if point >= 0]
    reverse = {(point, b.tracks.point[k]) for k, point in enumerate(backward) if point >= 0}
    return np.array(sorted(set(mutual) & reverse), np.int64).reshape(-1, 2)


def _best(of: ObjectPoints, among: ObjectPoints) -> NDArray[np.int64]:
    """Return for each feature of `of` the point of `among` that looks most like it; -1 where another does nearly."""
    found = np.full(len(of.descriptors), -1)
    order = np.argsort(among.tracks.point, kind="stable")
    points, starts = np.unique(among.tracks.point[order], return_index=True)
    theirs = among.descriptors[order].T
    for start in range(0, len(found), BLOCK):
        cosine = np.maximum.reduceat(of.descriptors[start : start + BLOCK] @ theirs, starts, axis=1)
        best = cosine.argmax(axis=1)
        rows = np.arange(len(cosine))
        first = cosine[rows, best].copy()
        cosine[rows, best] = -1
        distinct = np.sqrt(np.maximum(1 - first, 0)) < DISTINCT * np.sqrt(np.maximum(1 - cosine.max(axis=1), 0))
        found[start : start + BLOCK] = np.where(distinct, points[best], -1)
    return found


def match_nearby(a: ObjectPoints, b: ObjectPoints, moved: Array, reach: float) -> NDArray[np.int64]:
    """Return pairs (M, 2) of points of `a` and `b`, which a transform has `moved` near them, that look alike."""
    pairs = []
    trees = cKDTree(a.xyz), cKDTree(moved)
    of_a = [np.flatnonzero(a.tracks.point == k) for k in range(len(a.xyz))]
    of_b = [np.flatnonzero(b.tracks.point == k) for k in range(len(b.xyz))]
    for k, near in enumerate(trees[1].query_ball_tree(trees[0], reach)):
        likeness = [float((b.descriptors[of_b[k]] @ a.descriptors[of_a[one]].T).max()) for one in near]
        if likeness and max(likeness) > ALIKE:
            pairs.append((near[int(np.argmax(likeness))], k))
    return np.array(pairs, np.int64).reshape(-1, 2)


def adjust(
    first: Sequence[PosedFrame], turned: Sequence[PosedFrame], a: ObjectPoints, b: ObjectPoints,
    pairs: NDArray[np.int64], rotation: Array, shift: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Move the transform so that each pass's points lie where the other's frames show their partners.

    Returns it (4×4) and the distances in pixels, one for each partner's observation.
    """
    start = Rotation.from_matrix(rotation)
    in_first = _partners(a.tracks, pairs)  # of pairs: where the first pass's frames show them
    in_turned = _partners(b.tracks, pairs[:, ::-1])

    def residuals(x: Array) -> Array:
        turn, move = Rotation.from_rotvec(x[:3]) * start, shift + x[3:]
        forward = turn.apply(b.xyz) + move
        backward = turn.inv().apply(a.xyz - move)
        return np.vstack([_errors(first, *in_first, forward), _errors(turned, *in_turned, backward)]).ravel()

    fit = least_squares(residuals, np.zeros(6), loss="cauchy", f_scale=REPROJECTION_SCALE_PX, x_scale="jac")
    to_first = np.eye(4)
    to_first[:3, :3] = (Rotation.from_rotvec(fit.x[:3]) * start).as_matrix()
    to_first[:3, 3] = shift + fit.x[3:]
    return to_first, np.linalg.norm(residuals(fit.x).reshape(-1, 2), axis=1)


def _partners(tracks: Tracks, pairs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Return of all observations of pairs[:, 0] the frames' rows, the partners pairs[:, 1], and the places (K, 2)."""
    rows = [np.flatnonzero(tracks.point == own) for own, _ in pairs]
    observed = np.concatenate(rows)
    partner = np.repeat(pairs[:, 1], [len(one) for one in rows])
    order = np.argsort(tracks.frame[observed], kind="stable")
    observed, partner = observed[order], partner[order]
    return tracks.frame[observed], partner, tracks.xy[observed]


def _errors(
    frames: Sequence[PosedFrame], row: NDArray[np.int64], point: NDArray[np.int64], xy: Array, xyz: Array
) -> Array:
    """Return the differences (K, 2), pixels, of where points xyz[point] lie in frames[row] and `xy` (K, 2).

    `row` ascends.
    """
    return np.vstack([
        project(xyz[point[row == k]], np.array(frames[k].camera_to_reference), frames[k].intrinsics)[0] - xy[row == k]
        for k in np.unique(row)
    ])  # fmt: skip

"""How far two models are apart: a twin against its CAD model, or against an older scan.

A is moved onto B (point-to-plane ICP: Chen and Medioni 1991; Low 2004 for the linear step), then distances are taken
from points spread evenly over either surface to the other surface itself, exactly.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import trimesh
from matplotlib import colormaps
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from reconstruction.closest_point import TriangleTree
from reconstruction.solid import Solid, is_metric, load_solid
from scan2twin.errors import InputError
from scan2twin.frames import Document, Matrix4

Floats = NDArray[np.float64]
Align = Literal["rigid", "similarity", "none"]

SAMPLES = 20_000  # points on each surface that the figures are taken over
ICP_SAMPLES = (400, 4000)  # of a coarse pass from every start, and of a fine one from the best
ICP_STEPS = (20, 60)
CONVERGED = 1e-7  # change of a step, radians and shares of the size
DAMPING = 1e-6  # share of the mean of the normal matrix's diagonal
TRIMMED = 0.9  # share of the closest pairs that a step uses: a part that only one model has must not pull
COLOR_RANGE = 0.95  # quantile of the distances at which the colours end
SEED = 0


class Comparison(Document):
    """What `scan2twin compare` prints. Lengths in metres unless `metric` is false: then in B's own unit."""

    metric: bool  # B's scale is known, and A's too, or A took B's
    a_to_b: Matrix4  # 4×4, row major: the motion that brought A onto B
    scale: float  # of that motion; 1 unless a similarity was asked for
    mean: float  # of the distances from A to B and from B to A together
    rms: float
    p95: float
    hausdorff: float  # the largest of them
    mean_signed: float  # from A's points to B: positive where A lies outside B
    color_range: float  # distance at which the map's colours end


@dataclass(frozen=True)
class Deviations:
    """Distances from the points of one model to the surface of another."""

    distance: Floats  # (N,)
    signed: Floats  # (N,), positive outside


def compare(
    a: Path, b: Path, *, align: Align = "rigid", unit_a: str = "m", unit_b: str = "m", map_file: Path | None = None
) -> Comparison:
    """Compare the models at `a` and `b`; write A, moved onto B and coloured by its distance, as a GLB to `map_file`.

    Blue lies inside B, red outside, white on it.

    Raises:
        InputError: a file cannot be read, or `map_file` is not a GLB.

    """
    if map_file is not None and map_file.suffix.lower() != ".glb":
        raise InputError(f"--map {map_file}: the map is a GLB; let its name end in .glb")
    solid_a, solid_b = load_solid(a, unit_a), load_solid(b, unit_b)
    motion = np.eye(4) if align == "none" else align_solids(solid_a, solid_b, with_scale=align == "similarity")
    moved = Solid(_apply(motion, solid_a.vertices), solid_a.faces)
    rng = np.random.default_rng(SEED)
    from_a = deviations(spread_points(moved, SAMPLES, rng)[0], solid_b)
    from_b = deviations(spread_points(solid_b, SAMPLES, rng)[0], moved)
    both = np.concatenate([from_a.distance, from_b.distance])
    at_vertices = deviations(moved.vertices, solid_b)
    reach = max(float(np.quantile(at_vertices.distance, COLOR_RANGE)), 1e-9)
    if map_file is not None:
        _write_map(moved, at_vertices.signed / reach, map_file)
    return Comparison(
        metric=is_metric(b) and (align == "similarity" or is_metric(a)),
        a_to_b=motion.tolist(),
        scale=float(np.cbrt(np.linalg.det(motion[:3, :3]))),
        mean=float(both.mean()),
        rms=float(np.sqrt(np.square(both).mean())),
        p95=float(np.quantile(both, 0.95)),
        hausdorff=float(max(both.max(), at_vertices.distance.max())),
        mean_signed=float(from_a.signed.mean()),
        color_range=reach,
    )


def deviations(points: Floats, solid: Solid) -> Deviations:
    """Return the distances of `points` (N, 3) to the surface of `solid`."""
    found = TriangleTree(solid.vertices, solid.faces).query(points)
    closest = found.interpolate(solid.vertices, solid.faces)
    # The angle-weighted normals of the corners tell in from out also where the closest point is an edge or a corner
    # (Bærentzen and Aanæs 2005); a face's own normal does not.
    normals = np.array(trimesh.Trimesh(solid.vertices, solid.faces, process=False).vertex_normals)
    outward = found.interpolate(normals, solid.faces) + solid.face_normals[found.face]
    sign = np.where(((points - closest) * outward).sum(axis=1) >= 0, 1.0, -1.0)
    return Deviations(found.distance, found.distance * sign)


def spread_points(solid: Solid, count: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return `count` points spread evenly over the surface (N, 3), and the normals (N, 3) there."""
    areas = solid.face_areas
    face = rng.choice(len(areas), count, p=areas / areas.sum())
    # The square root makes the weights uniform over the triangle (Turk 1990).
    root, v = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    a, b, c = np.moveaxis(solid.vertices[solid.faces[face]], 1, 0)
    return (1 - root) * a + root * (1 - v) * b + root * v * c, solid.face_normals[face]


def align_solids(a: Solid, b: Solid, with_scale: bool) -> Floats:
    """Return the motion (4, 4) that brings `a` onto `b`: rotation and translation, and one scale if asked for.

    It starts from where `a` lies, and from every way to lay its principal axes on those of `b`.
    """
    rng = np.random.default_rng(SEED)
    pair = _Pair(a, b, with_scale)
    coarse, fine = ((spread_points(a, count, rng)[0], spread_points(b, count, rng)) for count in ICP_SAMPLES)
    starts = [np.eye(4), *_principal_starts(fine[0], fine[1][0], with_scale)]
    results = [pair.improve(start, *coarse, ICP_STEPS[0]) for start in starts]
    best = min(results, key=lambda result: result[1])[0]
    return pair.improve(best, *fine, ICP_STEPS[1])[0]


def _principal_starts(points: Floats, target: Floats, with_scale: bool) -> list[Floats]:
    """Return motions (4, 4) that lay the principal axes of `points` on those of `target`, in all 24 ways."""
    (mean_a, axes_a, size_a), (mean_b, axes_b, size_b) = _principal_axes(points), _principal_axes(target)
    starts = []
    for turn in Rotation.create_group("O").as_matrix():
        motion = np.eye(4)
        motion[:3, :3] = axes_b @ turn @ axes_a.T * (size_b / size_a if with_scale else 1.0)
        motion[:3, 3] = mean_b - motion[:3, :3] @ mean_a
        starts.append(motion)
    return starts


def _principal_axes(points: Floats) -> tuple[Floats, Floats, float]:
    """Return the mean (3,), the principal axes (3, 3) as columns of a rotation, and the root mean square radius."""
    mean = points.mean(axis=0)
    _, spread, axes = np.linalg.svd(points - mean, full_matrices=False)
    axes[2] = np.cross(axes[0], axes[1])
    return mean, axes.T, float(np.linalg.norm(spread) / np.sqrt(len(points)))


class _Pair:
    """Two surfaces, the first of which is moved onto the second.

    Pairs of closest points are taken both ways: from A alone, a free scale would shrink it to a point of B.
    """

    def __init__(self, a: Solid, b: Solid, with_scale: bool) -> None:
        self._a, self._b, self._with_scale = a, b, with_scale
        self._tree_a, self._tree_b = TriangleTree(a.vertices, a.faces), TriangleTree(b.vertices, b.faces)
        self._normals_b = b.face_normals
        self._reach = float(np.ptp(b.vertices, axis=0).max())

    def improve(
        self, motion: Floats, points_a: Floats, points_b: tuple[Floats, Floats], steps: int
    ) -> tuple[Floats, float]:
        """Improve a motion (4, 4) step by step; returns it with the root mean square of the trimmed distances."""
        rms = np.inf
        for _ in range(steps):
            moved, target, normal = self._closest(motion, points_a, points_b)
            distance = np.linalg.norm(moved - target, axis=1)
            near = distance <= np.quantile(distance, TRIMMED)
            rms = float(np.sqrt(np.square(distance[near]).mean()))
            step, change = self._step(moved[near], target[near], normal[near])
            motion = step @ motion
            if change < CONVERGED:
                break
        return motion, rms

    def _closest(
        self, motion: Floats, points_a: Floats, points_b: tuple[Floats, Floats]
    ) -> tuple[Floats, Floats, Floats]:
        """Return pairs: points of A as moved, points of B, and B's normals there, each (N, 3)."""
        moved = _apply(motion, points_a)
        on_b = self._tree_b.query(moved)
        on_a = self._tree_a.query(_apply(np.asarray(np.linalg.inv(motion), np.float64), points_b[0]))
        return (
            np.concatenate([moved, _apply(motion, on_a.interpolate(self._a.vertices, self._a.faces))]),
            np.concatenate([on_b.interpolate(self._b.vertices, self._b.faces), points_b[0]]),
            np.concatenate([self._normals_b[on_b.face], points_b[1]]),
        )

    def _step(self, moved: Floats, target: Floats, normal: Floats) -> tuple[Floats, float]:
        """Return the small motion (4, 4) that brings `moved` closest to the planes at `target`, and how large it is."""
        middle = moved.mean(axis=0)
        arm = moved - middle
        columns = [np.cross(arm, normal), normal * self._reach]
        if self._with_scale:
            columns.append((arm * normal).sum(axis=1, keepdims=True))
        system = np.concatenate(columns, axis=1)
        residual = ((target - moved) * normal).sum(axis=1)
        # A little damping holds what the surface leaves free, such as the turn of a sphere.
        square = system.T @ system
        damping = DAMPING * np.trace(square) / len(square) * np.eye(len(square))
        change = np.linalg.solve(square + damping, system.T @ residual)
        step = np.eye(4)
        step[:3, :3] = Rotation.from_rotvec(change[:3]).as_matrix() * (1 + change[6] if self._with_scale else 1.0)
        step[:3, 3] = middle + change[3:6] * self._reach - step[:3, :3] @ middle
        return step, float(np.abs(change).max())


def _apply(motion: Floats, points: Floats) -> Floats:
    return np.asarray(points @ motion[:3, :3].T + motion[:3, 3])


def _write_map(solid: Solid, level: Floats, path: Path) -> None:
    """Write a mesh as GLB with a colour at each vertex: `level` (V,) from -1, blue, over 0, white, to 1, red."""
    colors = (colormaps["bwr"](np.clip(level, -1, 1) / 2 + 0.5) * 255).round().astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    trimesh.Trimesh(solid.vertices, solid.faces, vertex_colors=colors, process=False).export(path)

"""A mesh file of any program, as a plain surface in metres, and what can be measured of it."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray

from scan2twin.errors import InputError
from scan2twin.frames import Document

Floats = NDArray[np.float64]

METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254}
SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")


@dataclass(frozen=True)
class Solid:
    """A triangle mesh, welded: vertices (V, 3) float64 in metres, faces (F, 3), counter-clockwise from outside."""

    vertices: Floats
    faces: NDArray[np.int64]

    @property
    def face_areas(self) -> Floats:
        """Area of each face (F,), square metres."""
        return np.asarray(0.5 * np.linalg.norm(self._crossed(), axis=1))

    @property
    def face_normals(self) -> Floats:
        """Outward unit normal of each face (F, 3); zero where a face has no area."""
        crossed = self._crossed()
        length = np.linalg.norm(crossed, axis=1, keepdims=True)
        return np.asarray(crossed / np.where(length > 0, length, 1))

    def _crossed(self) -> Floats:
        a, b, c = np.moveaxis(self.vertices[self.faces], 1, 0)
        return np.asarray(np.cross(b - a, c - a))


class Measurements(Document):
    """What `scan2twin measure` prints. Lengths in metres unless `metric` is false: then in the file's own unit."""

    file: str
    metric: bool
    size: list[float]  # x, y, z extent of the axis-aligned box
    box_min: list[float]
    box_max: list[float]
    surface_area: float
    watertight: bool  # every edge has exactly two faces, which agree on the outside
    volume: float | None  # None for a surface that is not watertight: it encloses nothing
    vertices: int  # distinct positions
    triangles: int
    parts: int  # connected components
    distances: list[float]  # between the given pairs of points


def load_solid(path: Path, unit: str = "m") -> Solid:
    """Read the mesh of a model folder or file; its numbers count `unit`s.

    Raises:
        InputError: the file is missing, of an unknown kind, damaged, empty or not finite.

    """
    file = path / "model.glb" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such file; give a model file or a folder that `scan2twin run` left")
    if file.suffix.lower() not in SUFFIXES:
        raise InputError(f"{file}: cannot read {file.suffix or 'this kind of file'}; give one of {', '.join(SUFFIXES)}")
    try:
        mesh: Any = trimesh.load_mesh(file, process=False)
        vertices, faces = np.array(mesh.vertices, np.float64), np.array(mesh.faces, np.int64)
    except Exception as error:
        # trimesh lets whatever a damaged file provokes (struct, JSON, key errors) through.
        raise InputError(f"{file}: not a readable mesh ({error or type(error).__name__})") from error
    if len(faces) == 0:
        raise InputError(f"{file}: holds no triangles; export the model as a triangle mesh")
    if not np.isfinite(vertices).all():
        raise InputError(f"{file}: has coordinates that are not finite; export the model again")
    # Vertices are repeated along texture seams, and in STL at every face: equal positions are one vertex.
    distinct, number = np.unique(vertices, axis=0, return_inverse=True)
    return Solid(distinct * METRES[unit], number.reshape(-1)[faces])


def measure(path: Path, pairs: Sequence[tuple[Sequence[float], Sequence[float]]], unit: str = "m") -> Measurements:
    """Measure the model at `path`, and the distances between pairs of points (3,) given in metres.

    Raises:
        InputError: see `load_solid`.

    """
    solid = load_solid(path, unit)
    mesh = trimesh.Trimesh(solid.vertices, solid.faces, process=False)
    closed = bool(mesh.is_watertight and mesh.is_winding_consistent)
    return Measurements(
        file=str(path),
        metric=is_metric(path),
        size=mesh.extents.tolist(),
        box_min=mesh.bounds[0].tolist(),
        box_max=mesh.bounds[1].tolist(),
        surface_area=float(mesh.area),
        watertight=closed,
        volume=float(mesh.volume) if closed else None,
        vertices=len(solid.vertices),
        triangles=len(solid.faces),
        parts=int(mesh.body_count),
        distances=[math.dist(a, b) for a, b in pairs],
    )


def is_metric(path: Path) -> bool:
    """Tell whether lengths are true: false only where a model folder says that its scale is unknown."""
    info = (path if path.is_dir() else path.parent) / "model.json"
    try:
        return bool(json.loads(info.read_bytes()).get("metric", True))
    except (OSError, ValueError, AttributeError):
        return True  # a file of another program, which has no model.json

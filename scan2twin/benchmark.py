"""The benchmark of whole captures: how long a model takes, what it needs, and how far it is from the truth.

The pipeline runs as the command a user types, in its own process and into an empty store, so that the figures
include everything he waits for. A truth folder holds `mesh.obj` (metres, +Y up, standing on its lowest point)
and `poses.json` with `anchor_to_mesh_world`, the 4×4 matrix from the capture's reference frame to the mesh's.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from scan2twin.config import PipelineConfig
from scan2twin.errors import InputError, ReconstructionError
from scan2twin.importers import as_bundle
from scan2twin.progress import Progress
from scan2twin.runner import import_capture, output_folder, run_stage
from scan2twin.stages import STAGES
from scan2twin.store import open_store
from scan2twin.store.artifacts import download

Points = NDArray[np.float64]  # (N, 3), metres

SAMPLES = 100_000  # surface points a mesh; the mean then repeats to about 0.5 % of itself
GROUND_SHARE = 0.02  # of the height: what lies lower stands on the ground and no camera sees it
CANDIDATES = 8  # triangles tried a point; exact for all but a few points in 100,000 of a smooth mesh
ICP_STEPS = 60
ICP_SAMPLES = 5_000
ICP_KEEP = 0.9  # share of the correspondences kept: the rest is ground contact and what was never seen
SEED = 0


@dataclass(frozen=True)
class GeometryFigures:
    """Distances between a model and the truth after rigid alignment, without scale."""

    chamfer_percent: float  # mean of accuracy and completeness, as % of the truth's bounding-box diagonal
    accuracy_percent: float  # mean distance from the model's surface to the truth's, % of the diagonal
    completeness_percent: float  # mean distance from the truth's surface to the model's, % of the diagonal
    accuracy_mm: float
    completeness_mm: float
    worst_mm: float  # 99th percentile of both directions
    size_error_percent: float  # largest deviation of the three extents above the ground contact
    alignment_mm: float  # how far the alignment moved the model's centre: error of the reference frame
    alignment_degrees: float


@dataclass(frozen=True)
class CaptureFigures:
    """What one benchmark run measured."""

    capture: str  # its id
    preset: str
    seconds: float  # wall clock of the first run, process start to model on disk
    cpu_seconds: float  # user and system time of the first run with all its children
    second_run_seconds: float
    peak_memory_mb: float
    geometry: GeometryFigures | None  # None without truth
    report: dict[str, Any]  # the model's report.json


class SampledSurface:
    """A triangle mesh that answers how far points are from its surface."""

    def __init__(self, mesh: trimesh.Trimesh, samples: int = SAMPLES) -> None:
        self.triangles = np.asarray(mesh.triangles, dtype=np.float64)
        points, faces = trimesh.sample.sample_surface(mesh, samples, seed=SEED)
        self.points: Points = np.asarray(points)
        self.faces = np.asarray(faces)
        self._tree = cKDTree(self.points)

    def closest(self, points: Points) -> tuple[Points, NDArray[np.float64]]:
        """Return the closest surface points (N, 3) to `points` (N, 3) and the distances (N,), both metres.

        The triangles of the nearest samples are searched exactly, so the distance has no floor from the spacing of
        the samples.
        """
        _, near = self._tree.query(points, k=CANDIDATES)
        best = np.empty_like(points)
        distance = np.full(len(points), np.inf)
        for faces in self.faces[near].T:
            found = trimesh.triangles.closest_point(self.triangles[faces], points)
            length = np.linalg.norm(found - points, axis=1)
            better = length < distance
            best[better], distance[better] = found[better], length[better]
        return best, distance


def align_rigidly(points: Points, surface: SampledSurface) -> NDArray[np.float64]:
    """Return the rigid 4×4 matrix that moves `points` (N, 3) onto `surface`, by trimmed iterative closest points.

    Starts at identity: both must already be roughly in place. Besl & McKay 1992 with the trimming of Chetverikov
    et al. 2002; no scale, since the scale is what is measured.
    """
    moved = np.eye(4)
    for _ in range(ICP_STEPS):
        current = points @ moved[:3, :3].T + moved[:3, 3]
        target, distance = surface.closest(current)
        kept = distance <= np.quantile(distance, ICP_KEEP)
        source_mean, target_mean = current[kept].mean(axis=0), target[kept].mean(axis=0)
        rotation, _ = Rotation.align_vectors(target[kept] - target_mean, current[kept] - source_mean)
        step = np.eye(4)
        step[:3, :3] = rotation.as_matrix()
        step[:3, 3] = target_mean - rotation.apply(source_mean)
        moved = step @ moved
        if rotation.magnitude() < 1e-6 and np.linalg.norm(step[:3, 3]) < 1e-7:
            break
    return moved


def compare_meshes(model: trimesh.Trimesh, truth: trimesh.Trimesh) -> GeometryFigures:
    """Measure `model` against `truth`, both in metres in the truth's frame (+Y up, standing on the lowest point).

    The model is first aligned rigidly. Only points above `GROUND_SHARE` of the truth's height count.
    """
    truth_surface = SampledSurface(truth)
    start, _ = trimesh.sample.sample_surface(model, ICP_SAMPLES, seed=SEED)
    centre = np.asarray(truth.bounds).mean(axis=0)
    ground = truth.bounds[0][1] + GROUND_SHARE * truth.extents[1]
    alignment = align_rigidly(np.asarray(start)[start[:, 1] > ground], truth_surface)

    model = model.copy()
    model.apply_transform(alignment)
    model_surface = SampledSurface(model)
    model_points = model_surface.points[model_surface.points[:, 1] > ground]
    truth_points = truth_surface.points[truth_surface.points[:, 1] > ground]
    if len(model_points) == 0:
        raise ReconstructionError("benchmark: no part of the model lies above the ground of the truth mesh")
    _, accuracy = truth_surface.closest(model_points)
    _, completeness = model_surface.closest(truth_points)

    diagonal = float(np.linalg.norm(truth.extents))
    extents = np.ptp(model_points, axis=0) / np.ptp(truth_points, axis=0)
    shift = alignment[:3, :3] @ centre + alignment[:3, 3] - centre
    return GeometryFigures(
        chamfer_percent=float(50 * (accuracy.mean() + completeness.mean()) / diagonal),
        accuracy_percent=float(100 * accuracy.mean() / diagonal),
        completeness_percent=float(100 * completeness.mean() / diagonal),
        accuracy_mm=float(1e3 * accuracy.mean()),
        completeness_mm=float(1e3 * completeness.mean()),
        worst_mm=float(1e3 * np.quantile(np.concatenate([accuracy, completeness]), 0.99)),
        size_error_percent=float(100 * np.abs(extents - 1).max()),
        alignment_mm=float(1e3 * np.linalg.norm(shift)),
        alignment_degrees=float(np.degrees(Rotation.from_matrix(alignment[:3, :3]).magnitude())),
    )


def compare_to_truth(model: Path, truth: Path) -> GeometryFigures:
    """Measure a model folder (model.glb, model.json) against a truth folder (mesh.obj, poses.json)."""
    mesh = trimesh.load_scene(model / "model.glb").to_mesh()
    model_to_reference = np.array(json.loads((model / "model.json").read_text())["model_to_reference"])
    reference_to_truth = np.array(json.loads((truth / "poses.json").read_text())["anchor_to_mesh_world"])
    mesh.apply_transform(reference_to_truth @ model_to_reference)
    return compare_meshes(mesh, trimesh.load_mesh(truth / "mesh.obj", process=False))


def benchmark_capture(
    capture: Path, truth: Path | None = None, preset: str = "standard", out: Path | None = None
) -> CaptureFigures:
    """Run the pipeline on `capture` twice (the second run finds everything done) and measure it.

    `truth` is a truth folder, or None to measure no geometry; the model is left in `out` if given.

    Raises:
        InputError: `capture` or `truth` lacks its files.
        ReconstructionError: the pipeline failed; its own message is on standard error.

    """
    missing = [file for file in ("mesh.obj", "poses.json") if truth and not (truth / file).is_file()]
    if missing:
        raise InputError(f"benchmark: {truth}: no {', '.join(missing)}; give the folder with the truth, or none")
    with tempfile.TemporaryDirectory(prefix="scan2twin-benchmark-") as folder:
        model = out or Path(folder) / "model"
        command = [
            sys.executable, "-c", "from scan2twin.cli.main import main; main()", "run", str(capture),
            "--out", str(model), "--store", str(Path(folder) / "store"), "--preset", preset,
        ]  # fmt: skip
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = _timed(command)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        second_run_seconds = _timed(command)
        report = json.loads((model / "report.json").read_text())
        return CaptureFigures(
            capture=report["capture_id"],
            preset=preset,
            seconds=seconds,
            cpu_seconds=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            second_run_seconds=second_run_seconds,
            peak_memory_mb=report["peak_memory_mb"],
            geometry=compare_to_truth(model, truth) if truth else None,
            report=report,
        )


@contextmanager
def mask_dataset(source: Path, config: PipelineConfig, progress: Progress) -> Iterator[Path]:
    """Yield the dataset folder that `source` is, or what the stages up to `mask` make of a capture or an imported scan.

    Raises:
        InputError: `source` is none of these, or a stage refuses it.

    """
    if (source / "dataset.json").is_file():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="scan2twin-benchmark-") as temporary:
        folder = Path(temporary)
        store = open_store(str(folder / "store"))
        with as_bundle(source, progress) as (bundle, _):
            capture_id = import_capture(store, bundle)
        for stage in STAGES[: 1 + [stage.name for stage in STAGES].index("mask")]:
            manifest = run_stage(store, capture_id, stage.name, config, progress).manifest
        download(store, output_folder(capture_id, stage, manifest.fingerprint), manifest, folder / "mask")
        yield folder / "mask"


def _timed(command: list[str]) -> float:
    started = time.monotonic()
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if code:
        raise ReconstructionError(f"benchmark: the pipeline ended with exit code {code}; see its message above")
    return time.monotonic() - started


def print_figures(figures: CaptureFigures, console: Console) -> None:
    """Print `figures` as a table."""
    table = Table(title=f"{figures.capture}, preset {figures.preset}", show_header=False)
    for name, text in _rows(figures):
        table.add_row(name, text)
    console.print(table)


def figures_json(figures: CaptureFigures) -> str:
    """Return `figures` as a JSON document."""
    return json.dumps(asdict(figures), indent=1)


def _rows(figures: CaptureFigures) -> list[tuple[str, str]]:
    report, geometry = figures.report, figures.geometry
    rows = [
        ("first run", f"{figures.seconds:.1f} s, {figures.cpu_seconds:.1f} CPU-s"),
        ("second run", f"{figures.second_run_seconds:.1f} s"),
        ("peak memory", f"{figures.peak_memory_mb:.0f} MB"),
    ]
    rows += [(f"  {stage}", f"{seconds:.1f} s") for stage, seconds in report["stage_seconds"].items()]
    rows += [
        ("held-out PSNR", _decibels(report["heldout_psnr"])),
        ("held-out PSNR, foreground", _decibels(report["heldout_psnr_foreground"])),
        ("triangles", f"{report['triangles']}"),
    ]
    if geometry:
        rows += [
            ("Chamfer", f"{geometry.chamfer_percent:.3f} % of the diagonal"),
            ("  model to truth", f"{geometry.accuracy_percent:.3f} %, {geometry.accuracy_mm:.2f} mm"),
            ("  truth to model", f"{geometry.completeness_percent:.3f} %, {geometry.completeness_mm:.2f} mm"),
            ("  99th percentile", f"{geometry.worst_mm:.2f} mm"),
            ("size error", f"{geometry.size_error_percent:.2f} %"),
            ("alignment", f"{geometry.alignment_mm:.2f} mm, {geometry.alignment_degrees:.3f}°"),
        ]
    return rows


def _decibels(value: float | None) -> str:
    return "no held-out views" if value is None else f"{value:.2f} dB"

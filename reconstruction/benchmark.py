"""Figures of the reconstruction alone: its kernels one by one, and the whole method on a dataset.

A dataset comes from the mask stage, or is drawn from a mesh that is known, with exact poses from all round and area-
filtered pixels; nothing of phones, masks or exposure is in that one. CPU seconds are of this process.
"""

import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import torch
import trimesh
from numpy.typing import NDArray

from reconstruction.albedo import albedo_psnr, textured_points
from reconstruction.atlas import UvMesh
from reconstruction.cameras import clip_from_camera, inverse_rigid, to_clip
from reconstruction.closest_point import TriangleTree
from reconstruction.color import linear_to_srgb, srgb_to_linear
from reconstruction.data import Views, load_views
from reconstruction.field import MaterialField
from reconstruction.gltf import read_glb
from reconstruction.isosurface import extract_topology
from reconstruction.optimise import Optimiser
from reconstruction.rasterizer import get_rasterizer
from scan2twin.capture.models import Intrinsics
from scan2twin.config import PipelineConfig, ReconstructConfig
from scan2twin.errors import InputError
from scan2twin.frames import Dataset, DatasetFrame
from scan2twin.progress import Progress
from scan2twin.stages import StageInputs, stage_named

TRAIN_VIEWS, HELDOUT_VIEWS = 60, 10
CAMERA_DISTANCE = 2.0  # unit-frame lengths
FIELD_OF_VIEW = 40.0  # degrees
SUPERSAMPLING = 4  # samples along each side of a pixel
SURFACE_SAMPLES = 60_000
REPEATS = 10
RASTERISED_TRIANGLES = 20_000  # at least; a mesh with fewer is subdivided


@dataclass(frozen=True)
class MethodFigures:
    """The stages reconstruct and export on one dataset; for the figures see `reconstruction.reconstruct`."""

    dataset: str
    iterations: int
    resolution: int
    grid: int
    texture_size: int
    reconstruct_cpu_seconds: float  # measuring included, as in the next
    export_cpu_seconds: float
    peak_memory_mb: float  # of this process
    field_psnr: float | None  # of the mesh and its field, before textures
    heldout_psnr: float | None  # of the finished, textured model, as are the next three
    heldout_psnr_foreground: float | None
    heldout_ssim: float | None
    mask_iou: float | None
    triangles: int
    chamfer_percent: float | None  # mean of both directions, % of the truth's bounding-box diagonal
    albedo_psnr: float | None  # of the base colour, dB, after the best factor a channel


@dataclass(frozen=True)
class KernelFigures:
    """One kernel on one mesh: milliseconds of CPU time, the fastest of several runs."""

    kernel: str
    milliseconds: float


class KnownMesh:
    """A textured mesh moved into the unit frame, and views of it."""

    def __init__(self, path: Path) -> None:
        """Read a mesh with UV coordinates and a texture (OBJ with MTL, GLB).

        Raises:
            InputError: it has none.

        """
        mesh = trimesh.load_mesh(path, process=False)
        material = getattr(mesh.visual, "material", None)
        image = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
        if image is None or mesh.visual.uv is None:
            raise InputError(f"{path.name}: has no texture; give a mesh with UV coordinates and a texture image")
        low, high = mesh.bounds
        vertices = (mesh.vertices - (low + high) / 2) / (high - low).max()
        self.size = (high - low) / (high - low).max()
        self.mesh = trimesh.Trimesh(vertices, mesh.faces, process=False)
        self._vertices = torch.tensor(vertices, dtype=torch.float32)
        self._faces = torch.tensor(np.asarray(mesh.faces), dtype=torch.int32)
        uv = np.asarray(mesh.visual.uv)
        self._uv = torch.tensor(np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1), dtype=torch.float32)
        self._image = np.asarray(image.convert("RGB"))
        texture = torch.from_numpy(self._image.astype(np.float32) / 255)
        self._texture = srgb_to_linear(texture)[None].contiguous()
        self._rasterizer = get_rasterizer("numba", torch.device("cpu"))

    def write_dataset(
        self, folder: Path, train: NDArray[np.float64], heldout: NDArray[np.float64], resolution: int
    ) -> Dataset:
        """Draw the mesh as a dataset of the mask stage, from directions (B, 3) towards the cameras, unit vectors."""
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True)
        focal = resolution / 2 / np.tan(np.radians(FIELD_OF_VIEW) / 2)
        intrinsics = Intrinsics(fx=focal, fy=focal, cx=resolution / 2, cy=resolution / 2)
        projection = clip_from_camera(intrinsics, resolution, resolution)
        frames = []
        for k, direction in enumerate([*train, *heldout]):
            camera_to_unit = look_at_origin(direction * CAMERA_DISTANCE)
            rgba = self._draw(torch.from_numpy(projection @ inverse_rigid(camera_to_unit)).float(), resolution)
            frame = DatasetFrame(
                index=k,
                image=f"images/{k:06d}.png",
                mask=f"masks/{k:06d}.png",
                intrinsics=intrinsics,
                camera_to_unit=camera_to_unit.tolist(),
                split="train" if k < len(train) else "heldout",
            )
            cv2.imwrite(str(folder / frame.image), rgba[..., 2::-1])
            cv2.imwrite(str(folder / frame.mask), rgba[..., 3])
            frames.append(frame)
        dataset = Dataset(
            capture_id="known-mesh",
            resolution=resolution,
            metric=False,
            unit_to_reference=np.eye(4).tolist(),
            object_size_unit=self.size.tolist(),
            frames=frames,
        )
        dataset.write(folder / "dataset.json")
        return dataset

    def _draw(self, clip_from_unit: torch.Tensor, resolution: int) -> NDArray[np.uint8]:
        """Draw (R, R, 4) sRGB with straight alpha, top row first."""
        fine = resolution * SUPERSAMPLING
        rast = self._rasterizer.rasterize(to_clip(self._vertices, clip_from_unit[None]), self._faces, (fine, fine))
        uv = self._rasterizer.interpolate(self._uv[None], rast, self._faces)
        color = self._rasterizer.texture(self._texture, uv, filter_mode="linear", boundary_mode="clamp")
        covered = (rast[..., 3:] > 0).float()
        both = torch.cat([color * covered, covered], dim=3).permute(0, 3, 1, 2)
        pooled = torch.nn.functional.avg_pool2d(both, SUPERSAMPLING)[0].permute(1, 2, 0)
        coverage = pooled[..., 3:]
        srgb = linear_to_srgb(pooled[..., :3] / coverage.clamp(min=1e-6))
        return np.asarray((torch.cat([srgb, coverage], dim=2) * 255).round().byte().flip(0).numpy())

    def albedo_psnr(self, mesh: UvMesh, base_color: NDArray[np.uint8]) -> float:
        """Return how true a model's base colour (S, S, 3) sRGB is: see `reconstruction.albedo`."""
        points, albedo = textured_points(
            self.mesh.vertices, self.mesh.faces, self._uv.numpy(), self._image, SURFACE_SAMPLES
        )
        return albedo_psnr(mesh, base_color, points, albedo)

    def chamfer_percent(self, vertices: NDArray[np.float32], faces: NDArray[np.int32]) -> float:
        """Return the mean distance to a mesh's surface, both ways, in % of this mesh's bounding-box diagonal."""
        mesh = trimesh.Trimesh(vertices, faces, process=False)
        distances = [
            TriangleTree(onto.vertices, onto.faces).query(trimesh.sample.sample_surface(of, SURFACE_SAMPLES, seed=0)[0])
            for of, onto in ((mesh, self.mesh), (self.mesh, mesh))
        ]
        mean = np.mean([found.distance.mean() for found in distances])
        return float(100 * mean / np.linalg.norm(self.mesh.extents))


def look_at_origin(centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return camera to unit frame (4, 4), OpenGL axes, of a camera at `centre` that looks at the origin, +Y up."""
    back = centre / np.linalg.norm(centre)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    camera_to_unit = np.eye(4)
    camera_to_unit[:3] = np.stack([right, np.cross(back, right), back, centre], axis=1)
    return camera_to_unit


def spiral(count: int) -> NDArray[np.float64]:
    """Return unit vectors (count, 3) spread evenly over the sphere (Fibonacci spiral)."""
    k = np.arange(count)
    height = 1 - 2 * (k + 0.5) / count
    ring, turn = np.sqrt(1 - height**2), k * np.pi * (3 - 5**0.5)
    return np.stack([ring * np.cos(turn), height, ring * np.sin(turn)], axis=1)


def benchmark_known_mesh(known: KnownMesh, config: PipelineConfig, progress: Progress) -> MethodFigures:
    """Draw `known` from all round and reconstruct it from the exact poses."""
    random = np.random.default_rng(3).normal(size=(HELDOUT_VIEWS, 3))
    heldout = random / np.linalg.norm(random, axis=1, keepdims=True)
    exact = config.model_copy(update={"reconstruct": config.reconstruct.model_copy(update={"refine_cameras": False})})
    with tempfile.TemporaryDirectory(prefix="scan2twin-benchmark-") as folder:
        known.write_dataset(Path(folder), spiral(TRAIN_VIEWS), heldout, config.reconstruct.resolution)
        return benchmark_dataset(Path(folder), exact, progress, known)


def benchmark_dataset(
    dataset: Path, config: PipelineConfig, progress: Progress, truth: KnownMesh | None = None
) -> MethodFigures:
    """Run reconstruct and export on a folder as the mask stage leaves it; `truth` is what it was drawn from."""
    # What is measured is the model: no film, and coordinates as in the dataset.
    options = {"turntable_frames": 0, "formats": (), "levels": (), "origin": "reference"}
    with tempfile.TemporaryDirectory(prefix="scan2twin-benchmark-") as temporary:
        folders = {"mask": dataset, **{name: Path(temporary) / name for name in ("reconstruct", "export")}}
        sections = {"reconstruct": config.reconstruct, "export": config.export.model_copy(update=options)}
        metrics, seconds = {}, {}
        for name, section in sections.items():
            folders[name].mkdir()
            started = time.process_time()
            metrics[name] = stage_named(name).load()(StageInputs(folders), folders[name], section, progress).metrics
            seconds[name] = round(time.process_time() - started, 1)
        mesh, material = read_glb(folders["export"] / "model.glb")
    finished = metrics["export"]
    return MethodFigures(
        dataset=Dataset.read(dataset / "dataset.json").capture_id,
        iterations=config.reconstruct.iterations,
        resolution=config.reconstruct.resolution,
        grid=config.reconstruct.grid,
        texture_size=config.export.texture_size,
        reconstruct_cpu_seconds=seconds["reconstruct"],
        export_cpu_seconds=seconds["export"],
        peak_memory_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 0),
        field_psnr=metrics["reconstruct"]["heldout_psnr"],
        heldout_psnr=finished.get("heldout_psnr"),
        heldout_psnr_foreground=finished.get("heldout_psnr_foreground"),
        heldout_ssim=finished.get("heldout_ssim"),
        mask_iou=finished.get("mask_iou_heldout"),
        triangles=finished["triangles"],
        chamfer_percent=truth.chamfer_percent(mesh.vertices, mesh.faces) if truth else None,
        albedo_psnr=truth.albedo_psnr(mesh, material.base_color) if truth else None,
    )


def benchmark_kernels(known: KnownMesh, config: ReconstructConfig) -> list[KernelFigures]:
    """Time the parts of an iteration, and whole ones, on the start of a reconstruction of `known`.

    Kernels that work on images are timed at `config.resolution`, twice and four times that, the rasteriser also on
    the mesh itself; whole iterations at `config.resolution` and twice that, for every `appearance`.
    """
    torch.set_num_threads(1)
    sides = [config.resolution * factor for factor in (1, 2, 4)]
    views = {side: _views(known, side) for side in sides[:2]}
    optimiser = _started(views[sides[0]], known, config)
    work = [_geometry_kernels(optimiser), _rasteriser_on_mesh(optimiser, known, sides)]
    work += [_image_kernels(optimiser, side) for side in sides]
    figures = [KernelFigures(name, _milliseconds(part)) for kernels in work for name, part in kernels.items()]
    for side in sides[:2]:
        for appearance in get_args(ReconstructConfig.model_fields["appearance"].annotation):
            options = {"appearance": appearance, "resolution": side}
            step = _started(views[side], known, config.model_copy(update=options)).step
            figures.append(KernelFigures(f"whole iteration at {side}², {appearance}", _milliseconds(step)))
    return figures


def _views(known: KnownMesh, side: int) -> Views:
    with tempfile.TemporaryDirectory(prefix="scan2twin-benchmark-") as folder:
        dataset = known.write_dataset(Path(folder), spiral(12), np.empty((0, 3)), side)
        return load_views(Path(folder), dataset, "train", side)[0]


def _started(views: Views, known: KnownMesh, config: ReconstructConfig) -> Optimiser:
    """Return an optimiser that is past the coarse grid and the small images, with `REPEATS` iterations to go."""
    rasterizer = get_rasterizer("numba", torch.device("cpu"))
    optimiser = Optimiser(views, known.size, config.model_copy(update={"iterations": 4 * REPEATS}), rasterizer)
    while optimiser.iteration < 2 * REPEATS:
        optimiser.step()
    return optimiser


def _geometry_kernels(optimiser: Optimiser) -> dict[str, Callable[[], object]]:
    surface, field = optimiser.surface, MaterialField()
    faces, points = surface.mesh().faces, (torch.rand(20_000, 3) - 0.5).requires_grad_()

    def material() -> None:
        field.albedo_srgb(points).sum().backward()  # type: ignore[no-untyped-call]

    return {
        f"isosurface, {len(surface.band.tets)} tetrahedra": lambda: extract_topology(
            surface.sdf.detach().numpy() < 0, surface.band
        ),
        f"adjacency of {len(faces)} triangles": lambda: optimiser.rasterizer.build_topology(faces),
        "material field, 20,000 points, forward and backward": material,
    }


def _rasteriser_on_mesh(optimiser: Optimiser, known: KnownMesh, sides: list[int]) -> dict[str, Callable[[], object]]:
    mesh = known.mesh
    while len(mesh.faces) < RASTERISED_TRIANGLES:
        mesh = mesh.subdivide()
    faces = torch.tensor(np.asarray(mesh.faces), dtype=torch.int32)
    vertices = torch.tensor(mesh.vertices, dtype=torch.float32)
    clip = to_clip(vertices, optimiser.clip_from_unit(0).detach()[None]).contiguous()
    return {
        f"rasterise the mesh in {len(faces)} triangles at {side}²": partial(
            optimiser.rasterizer.rasterize, clip, faces, (side, side)
        )
        for side in sides
    }


def _image_kernels(optimiser: Optimiser, side: int) -> dict[str, Callable[[], object]]:
    rasterizer, mesh = optimiser.rasterizer, optimiser.surface.mesh()
    vertices, faces = mesh.vertices.detach(), mesh.faces
    topology = rasterizer.build_topology(faces)
    clip = to_clip(vertices, optimiser.clip_from_unit(0).detach()[None]).contiguous().requires_grad_()
    rast = rasterizer.rasterize(clip.detach(), faces, (side, side))
    color = torch.rand(1, side, side, 4, requires_grad=True)

    def antialias() -> torch.Tensor:
        return rasterizer.antialias(color, rast, clip, faces, topology)

    return {
        f"rasterise {len(faces)} triangles at {side}²": lambda: rasterizer.rasterize(
            clip.detach(), faces, (side, side)
        ),
        f"antialias at {side}², forward": antialias,
        f"antialias at {side}², forward and backward": lambda: antialias().backward(torch.ones_like(color)),  # type: ignore[no-untyped-call]
    }


def _milliseconds(function: Callable[[], object]) -> float:
    function()
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return round(1e3 * min(times), 2)

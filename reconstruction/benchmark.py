"""Figures of the reconstruction alone: its kernels one by one, and the whole method on a mesh that is known.

The known mesh is drawn with exact poses from all round, four samples a pixel side, and reconstructed from those
views; nothing of phones, masks or exposure is in it. CPU seconds are of this process.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray

from reconstruction.cameras import clip_from_camera, inverse_rigid, to_clip
from reconstruction.color import linear_to_srgb, srgb_to_linear
from reconstruction.data import Views
from reconstruction.field import MaterialField
from reconstruction.finished_model import FinishedModel
from reconstruction.isosurface import extract_topology
from reconstruction.measure import measure_view
from reconstruction.optimise import Optimiser
from reconstruction.rasterizer import get_rasterizer
from scan2twin.benchmark import SampledSurface
from scan2twin.capture.models import Intrinsics
from scan2twin.config import ReconstructConfig
from scan2twin.errors import InputError

TRAIN_VIEWS, HELDOUT_VIEWS = 60, 10
CAMERA_DISTANCE = 2.0  # unit-frame lengths
FIELD_OF_VIEW = 40.0  # degrees
SUPERSAMPLING = 4  # samples along each side of a pixel
SURFACE_SAMPLES = 60_000
REPEATS = 10


@dataclass(frozen=True)
class MethodFigures:
    """The method after some iterations."""

    iterations: int
    cpu_seconds: float  # of the optimisation so far, start included, measuring left out
    heldout_psnr: float  # dB, whole view on black, mean over the held-out views
    heldout_psnr_foreground: float
    mask_iou: float
    chamfer_percent: float  # mean of both directions, % of the truth's bounding-box diagonal
    triangles: int


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
        texture = np.asarray(image.convert("RGB"), np.float32) / 255
        self._texture = srgb_to_linear(torch.from_numpy(texture))[None].contiguous()
        self._rasterizer = get_rasterizer("numba", torch.device("cpu"))

    def views(self, directions: NDArray[np.float64], resolution: int) -> Views:
        """Draw the mesh from unit vectors (B, 3) towards it."""
        focal = resolution / 2 / np.tan(np.radians(FIELD_OF_VIEW) / 2)
        intrinsics = Intrinsics(fx=focal, fy=focal, cx=resolution / 2, cy=resolution / 2)
        projection = clip_from_camera(intrinsics, resolution, resolution).astype(np.float32)
        cameras = np.stack([inverse_rigid(look_at_origin(d * CAMERA_DISTANCE)) for d in directions])
        camera_from_unit = torch.from_numpy(cameras.astype(np.float32))
        clip_from_cameras = torch.from_numpy(projection).expand(len(directions), 4, 4)
        images = torch.stack(
            [self._draw(p @ c, resolution) for p, c in zip(clip_from_cameras, camera_from_unit, strict=True)]
        )
        return Views(
            tuple(range(len(directions))), images, clip_from_cameras, camera_from_unit, torch.ones(len(directions))
        )

    def _draw(self, clip_from_unit: torch.Tensor, resolution: int) -> torch.Tensor:
        fine = resolution * SUPERSAMPLING
        rast = self._rasterizer.rasterize(to_clip(self._vertices, clip_from_unit[None]), self._faces, (fine, fine))
        uv = self._rasterizer.interpolate(self._uv[None], rast, self._faces)
        color = self._rasterizer.texture(self._texture, uv, filter_mode="linear", boundary_mode="clamp")
        covered = (rast[..., 3:] > 0).float()
        both = torch.cat([color * covered, covered], dim=3).permute(0, 3, 1, 2)
        pooled = torch.nn.functional.avg_pool2d(both, SUPERSAMPLING)[0].permute(1, 2, 0)
        coverage = pooled[..., 3:]
        srgb = linear_to_srgb(pooled[..., :3] / coverage.clamp(min=1e-6)) * coverage
        return (torch.cat([srgb, coverage], dim=2) * 255).round().byte()


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


def benchmark_method(
    known: KnownMesh, config: ReconstructConfig, report_at: Sequence[int], found: Callable[[MethodFigures], None]
) -> None:
    """Reconstruct `known` and call `found` with the figures after each number of iterations in `report_at`."""
    torch.set_num_threads(1)
    train = known.views(spiral(TRAIN_VIEWS), config.resolution)
    random = np.random.default_rng(3).normal(size=(HELDOUT_VIEWS, 3))
    heldout = known.views(random / np.linalg.norm(random, axis=1, keepdims=True), config.resolution)
    truth, diagonal = SampledSurface(known.mesh, SURFACE_SAMPLES), float(np.linalg.norm(known.mesh.extents))
    rasterizer = get_rasterizer("numba", torch.device("cpu"))
    used, clock = 0.0, time.process_time()
    optimiser = Optimiser(train, known.size, config, rasterizer)
    for step in optimiser.run():
        if step.iteration + 1 not in report_at:
            continue
        used += time.process_time() - clock
        with torch.no_grad():
            mesh = optimiser.surface.mesh()
            model = FinishedModel(mesh.vertices, mesh.faces, optimiser.field, rasterizer, optimiser.light)
            figures = [
                measure_view(model.render(c @ v, config.resolution), image.float() / 255)
                for c, v, image in zip(heldout.clip_from_camera, heldout.camera_from_unit, heldout.images, strict=True)
            ]
        surface = SampledSurface(
            trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False), SURFACE_SAMPLES
        )
        both_ways = truth.closest(surface.points)[1].mean() + surface.closest(truth.points)[1].mean()
        found(
            MethodFigures(
                step.iteration + 1,
                round(used, 1),
                float(np.mean([f.psnr for f in figures])),
                float(np.mean([f.psnr_foreground for f in figures])),
                float(np.mean([f.mask_iou for f in figures])),
                float(50 * both_ways / diagonal),
                len(mesh.faces),
            )
        )
        clock = time.process_time()


def benchmark_kernels(known: KnownMesh, config: ReconstructConfig) -> list[KernelFigures]:
    """Time the parts of an iteration on the start of a reconstruction of `known`."""
    torch.set_num_threads(1)
    rasterizer = get_rasterizer("numba", torch.device("cpu"))
    short = config.model_copy(update={"iterations": 4 * REPEATS})
    optimiser = Optimiser(known.views(spiral(12), config.resolution), known.size, short, rasterizer)
    while optimiser.iteration < 2 * REPEATS:  # past the coarse grid and the small images
        optimiser.step()
    surface = optimiser.surface
    mesh = surface.mesh()
    vertices, faces = mesh.vertices.detach(), mesh.faces
    clip = to_clip(vertices, optimiser.clip_from_unit(0).detach()[None]).contiguous().requires_grad_()
    size = (config.resolution, config.resolution)
    rast = rasterizer.rasterize(clip, faces, size)
    color = torch.rand(1, *size, 4, requires_grad=True)
    field, points = MaterialField(), (torch.rand(20_000, 3) - 0.5).requires_grad_()

    def antialias() -> None:
        rasterizer.antialias(color, rast.detach(), clip, faces).sum().backward()  # type: ignore[no-untyped-call]

    def material() -> None:
        field.albedo_srgb(points).sum().backward()  # type: ignore[no-untyped-call]

    triangles = len(faces)
    work: dict[str, Callable[[], object]] = {
        f"isosurface, {len(surface.band.tets)} tetrahedra": lambda: extract_topology(
            surface.sdf.detach().numpy() < 0, surface.band
        ),
        f"rasterise {triangles} triangles at {size[0]}²": lambda: rasterizer.rasterize(clip.detach(), faces, size),
        f"antialias at {size[0]}², topology and backward included": antialias,
        "material field, 20,000 points, forward and backward": material,
        "whole iteration": optimiser.step,
    }
    return [KernelFigures(name, _milliseconds(function)) for name, function in work.items()]


def _milliseconds(function: Callable[[], object]) -> float:
    function()
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return round(1e3 * min(times), 2)

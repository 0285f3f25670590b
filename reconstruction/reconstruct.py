"""Stage `reconstruct`: the dataset becomes a mesh and a material field.

Writes `mesh.npz` (vertices (V, 3) float32 in the unit frame, faces (F, 3) int32, counter-clockwise from outside),
`field.pt` (see `reconstruction.field.load_field`), `views.npz` (of every training view: its frame's index,
camera_from_unit (B, 4, 4) as refined and its gain (B, 3) on linear RGB), `metrics.jsonl` (a line every few iterations),
`heldout/NNNNNN.png` (photo | rendering | error ×4) and `result.json`.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from reconstruction.cameras import se3_exp
from reconstruction.data import Views, check_cameras, load_views
from reconstruction.measure import ViewFigures, comparison_picture, measure_view, standouts
from reconstruction.mesh_cleanup import remove_floaters
from reconstruction.optimise import Optimiser
from reconstruction.rasterizer import Rasterizer, get_rasterizer
from reconstruction.view_renderer import render_view
from scan2twin.config import ReconstructConfig
from scan2twin.frames import Dataset
from scan2twin.progress import Progress
from scan2twin.stages import StageInputs, StageResult

LOG_EVERY = 10  # iterations between lines of metrics.jsonl


def run(inputs: StageInputs, outputs: Path, config: ReconstructConfig, progress: Progress) -> StageResult:
    """Reconstruct the object from the dataset of the mask stage.

    Raises:
        InputError: the dataset cannot give a model; every reason found is listed.
        ReconstructionError: the optimisation gave no usable mesh.

    """
    torch.set_num_threads(1)  # the kernels are numba's; OpenMP's spinning threads would only take its cores
    started = time.process_time()
    folder = inputs["mask"]
    dataset = Dataset.read(folder / "dataset.json")
    object_size = np.array(dataset.object_size_unit)
    train, warnings = load_views(folder, dataset, "train", config.resolution)
    heldout, left_out = load_views(folder, dataset, "heldout", config.resolution)
    check_cameras(train, object_size)

    rasterizer = get_rasterizer("auto", torch.device("cpu"))
    optimiser = Optimiser(train, object_size, config, rasterizer)
    _optimise(optimiser, outputs, progress)

    with torch.no_grad():
        mesh = optimiser.surface.mesh()
    vertices, faces, dropped = remove_floaters(mesh.vertices.numpy(), mesh.faces.numpy())
    model = FinishedModel(vertices, faces, optimiser, rasterizer)
    np.savez(outputs / "mesh.npz", vertices=vertices, faces=faces)
    optimiser.field.save(outputs / "field.pt")
    with torch.no_grad():
        refined = se3_exp(optimiser.twist) @ train.camera_from_unit
        np.savez(outputs / "views.npz", index=train.index, camera_from_unit=refined, gain=optimiser.gains())

    progress.start("measure", len(train) + len(heldout))
    train_figures = [model.measure(train, k, None, progress) for k in range(len(train))]
    (outputs / "heldout").mkdir()
    heldout_figures = [model.measure(heldout, k, outputs / "heldout", progress) for k in range(len(heldout))]

    metrics: dict[str, Any] = {
        **_heldout_metrics(heldout_figures),
        "train_psnr_foreground": _mean([f.psnr_foreground_gain for f in train_figures]),
        "vertices": len(vertices),
        "triangles": len(faces),
        "floaters_removed": dropped,
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    (outputs / "result.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    return StageResult(metrics, [*warnings, *left_out, *_warnings(train, train_figures, heldout)])


def _optimise(optimiser: Optimiser, outputs: Path, progress: Progress) -> None:
    progress.start("reconstruct", optimiser.config.iterations)
    clock = time.monotonic()
    with (outputs / "metrics.jsonl").open("w", encoding="utf-8") as log:
        for step in optimiser.run():
            now = time.monotonic()
            speed, clock = 1 / max(now - clock, 1e-6), now
            progress.advance(loss=step.loss, psnr=step.psnr, it_per_s=speed)
            if step.iteration % LOG_EVERY == 0:
                line = {
                    "iteration": step.iteration,
                    "frame": optimiser.views.index[step.view],
                    "loss": round(step.loss, 6),
                    "psnr": round(step.psnr, 3),
                    "triangles": step.triangles,
                }
                log.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class FinishedModel:
    """The cleaned mesh with what renders it."""

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    optimiser: Optimiser
    rasterizer: Rasterizer

    @torch.no_grad()
    def measure(self, views: Views, number: int, pictures: Path | None, progress: Progress) -> ViewFigures:
        """Render view `number`, measure it, and leave the comparison in the folder `pictures` if given."""
        vertices, faces = torch.from_numpy(self.vertices), torch.from_numpy(self.faces)
        if views is self.optimiser.views:
            clip_from_unit = self.optimiser.clip_from_unit(number)
        else:
            clip_from_unit = views.clip_from_camera[number] @ views.camera_from_unit[number]
        rendering = render_view(
            self.rasterizer, vertices, faces, None, self.optimiser.field, clip_from_unit, views.resolution
        )
        photo = views.images[number].float() / 255
        figures = measure_view(rendering, photo)
        if pictures is not None:
            picture = comparison_picture(rendering, photo, figures.gain)
            cv2.imwrite(str(pictures / f"{views.index[number]:06d}.png"), picture[:, :, ::-1])
        progress.advance()
        return figures


def _mean(values: list[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None


def _heldout_metrics(figures: list[ViewFigures]) -> dict[str, Any]:
    return {
        "heldout_views": len(figures),
        "heldout_psnr": _mean([f.psnr_gain for f in figures]),
        "heldout_psnr_foreground": _mean([f.psnr_foreground_gain for f in figures]),
        "heldout_psnr_without_gain": _mean([f.psnr for f in figures]),
        "heldout_psnr_foreground_without_gain": _mean([f.psnr_foreground for f in figures]),
        "mask_iou_heldout": _mean([f.mask_iou for f in figures]),
    }


def _warnings(train: Views, figures: list[ViewFigures], heldout: Views) -> list[str]:
    warnings = []
    if len(heldout) == 0:
        warnings.append("no view was held out, so the model's quality on new views is not measured")
    for k in standouts(np.array([10 ** (-f.psnr_foreground_gain / 20) for f in figures])):
        warnings.append(
            f"frame {train.index[k]}: does not fit the model ({figures[k].psnr_foreground_gain:.1f} dB); "
            "its pose, mask or sharpness is likely off"
        )
    for k in standouts(np.array([1 - f.mask_iou for f in figures])):
        if figures[k].mask_iou < 0.95:
            warnings.append(
                f"frame {train.index[k]}: its mask disagrees with the other views (IoU {figures[k].mask_iou:.2f}); "
                "look at it"
            )
    return warnings

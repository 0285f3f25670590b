"""Stage `reconstruct`: the dataset becomes a mesh and a material field.

Writes `mesh.npz` (vertices (V, 3) float32 in the unit frame, faces (F, 3) int32, counter-clockwise from outside),
`field.pt` (see `reconstruction.field.load_field`), `light.json` (see `reconstruction.appearance.load_light`),
`views.npz` (of every training view: its frame's index, camera_from_unit (B, 4, 4) as refined, gain (B, 3) on linear
RGB, weight (B,)), `metrics.jsonl` (a line every few iterations), `heldout/NNNNNN.png` (photo | rendering | error ×4),
`heldout/cameras.npz` (of every held-out view: its frame's index, clip_from_unit (B, 4, 4) and gain (B, 3) as fitted)
and `result.json`.

Held-out figures: `heldout_psnr` is over the whole square view, photo and rendering both on black, and `heldout_ssim`
its structural similarity; `heldout_psnr_foreground` is over the pixels whose mask is at least one half;
`mask_iou_heldout` is the overlap of coverage and mask at one half. They are taken after the view's pose and exposure
were fitted to its photo with the model held fixed, since a phone knows neither exactly (where `refine_cameras` is off
poses are taken as exact, and only the exposure is fitted); `heldout_as_given` has the same figures without any fitting.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from reconstruction.appearance import save_light
from reconstruction.cameras import se3_exp
from reconstruction.checkpoint import Checkpoints
from reconstruction.data import Views, check_cameras, load_views
from reconstruction.finished_model import FIT_STEPS, FinishedModel
from reconstruction.measure import ViewFigures, comparison_picture, mean_figures, measure_view, standouts
from reconstruction.mesh_cleanup import remove_floaters
from reconstruction.optimise import Optimiser
from reconstruction.rasterizer import choose_device, get_rasterizer
from reconstruction.training_log import TrainingLog
from scan2twin.config import ReconstructConfig
from scan2twin.frames import Dataset
from scan2twin.progress import Progress
from scan2twin.stages import StageInputs, StageResult

POOR_IOU = 0.95  # overlap of mask and rendering below which a mask that stands out is worth a word


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

    device = choose_device()
    rasterizer = get_rasterizer("auto", device)
    train, heldout = train.to(device), heldout.to(device)
    optimiser = Optimiser(train, object_size, config, rasterizer)
    _optimise(optimiser, outputs, Checkpoints(inputs.checkpoints), progress)

    with torch.no_grad():
        mesh = optimiser.surface.mesh()
        vertices, faces, dropped = remove_floaters(mesh.vertices.cpu().numpy(), mesh.faces.cpu().numpy())
        np.savez(outputs / "mesh.npz", vertices=vertices, faces=faces)
        refined = replace(
            train,
            camera_from_unit=se3_exp(optimiser.twist) @ train.camera_from_unit,
            weight=train.weight * optimiser.trust,
        )
        np.savez(
            outputs / "views.npz",
            index=refined.index,
            camera_from_unit=refined.camera_from_unit.cpu(),
            gain=optimiser.gains().cpu(),
            weight=refined.weight.cpu(),
        )
    field = optimiser.field.requires_grad_(False)
    field.save(outputs / "field.pt")
    light = None if optimiser.light is None else optimiser.light.requires_grad_(False)
    save_light(light, outputs)

    model = FinishedModel(
        torch.from_numpy(vertices).to(device), torch.from_numpy(faces).to(device), field, rasterizer, light
    )
    train_figures = _measure_train(model, refined, optimiser.gains(), progress)
    heldout_figures = _measure_heldout(model, heldout, config.refine_cameras, outputs / "heldout", progress)
    metrics: dict[str, Any] = {
        **heldout_figures,
        "train_psnr_foreground": mean_figures(train_figures)["psnr_foreground"],
        "headlight_share": 0.0 if optimiser.light is None else round(float(optimiser.light.share.detach()), 3),
        "vertices": len(vertices),
        "triangles": len(faces),
        "floaters_removed": dropped,
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    (outputs / "result.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    return StageResult(metrics, [*warnings, *left_out, *_warnings(optimiser, train_figures, len(heldout))])


def _optimise(optimiser: Optimiser, outputs: Path, checkpoints: Checkpoints, progress: Progress) -> None:
    resumed = checkpoints.restore(optimiser)
    progress.start("reconstruct", optimiser.config.iterations)
    progress.advance(optimiser.iteration)
    clock, speed = time.monotonic(), 0.0
    with TrainingLog(outputs, optimiser, resumed) as log:
        for step in optimiser.run():
            now = time.monotonic()
            speed = 0.9 * speed + 0.1 / max(now - clock, 1e-6) if speed else 1 / max(now - clock, 1e-6)
            clock = now
            progress.advance(loss=step.loss, psnr=step.psnr, it_per_s=speed)
            log.write(step, speed)
            checkpoints.offer(optimiser)


@torch.no_grad()
def _measure_train(model: FinishedModel, views: Views, gains: torch.Tensor, progress: Progress) -> list[ViewFigures]:
    figures = []
    progress.start("measure training views", len(views))
    for k in range(len(views)):
        camera, window = views.clip_from_camera[k] @ views.camera_from_unit[k], views.window(k)
        rendering = model.render(camera, views.resolution, gains[k])
        figures.append(measure_view(rendering[window], views.images[k].float()[window] / 255))
        progress.advance()
    return figures


def _measure_heldout(
    model: FinishedModel, views: Views, fit_poses: bool, pictures: Path, progress: Progress
) -> dict[str, Any]:
    """Measure the held-out views, leave a comparison of each in `pictures`, and return the metrics."""
    pictures.mkdir()
    fitted, as_given, cameras, gains = [], [], [], []
    progress.start("measure held-out views", len(views))
    for k in range(len(views)):
        photo = views.images[k].float() / 255
        camera, gain = model.fit_camera(views, k, FIT_STEPS if fit_poses else 0)
        with torch.no_grad():
            given = model.render(views.clip_from_camera[k] @ views.camera_from_unit[k], views.resolution)
            rendering = model.render(camera, views.resolution, gain)
        window = views.window(k)
        as_given.append(measure_view(given[window], photo[window]))
        fitted.append(measure_view(rendering[window], photo[window]))
        cameras.append(camera.cpu().numpy())
        gains.append(gain.cpu().numpy())
        picture = comparison_picture(rendering, photo)
        cv2.imwrite(str(pictures / f"{views.index[k]:06d}.png"), picture[:, :, ::-1])
        progress.advance()
    np.savez(
        pictures / "cameras.npz",
        index=views.index,
        clip_from_unit=np.array(cameras, np.float32).reshape(-1, 4, 4),
        gain=np.array(gains, np.float32).reshape(-1, 3),
    )
    means = mean_figures(fitted)
    return {
        "heldout_views": len(views),
        "heldout_psnr": means["psnr"],
        "heldout_psnr_foreground": means["psnr_foreground"],
        "heldout_ssim": means["ssim"],
        "mask_iou_heldout": means["mask_iou"],
        "heldout_as_given": mean_figures(as_given),
    }


def _warnings(optimiser: Optimiser, figures: list[ViewFigures], heldout_views: int) -> list[str]:
    index, warnings = optimiser.views.index, []
    if heldout_views == 0:
        warnings.append("no view was held out, so the model's quality on new views is not measured")
    unlike = set(standouts(np.array([1 - f.mask_iou for f in figures])).tolist())
    for k, view in enumerate(figures):
        if k in unlike and view.mask_iou < POOR_IOU:
            warnings.append(
                f"frame {index[k]}: its mask disagrees with the other views (overlap {view.mask_iou:.2f}); "
                "look at its mask and pose"
            )
        elif optimiser.trust[k] < 1:
            warnings.append(
                f"frame {index[k]}: does not fit the other views ({view.psnr_foreground:.1f} dB) and counted only "
                f"{float(optimiser.trust[k]):.0%}; its pose, mask or sharpness is likely off"
            )
    return warnings

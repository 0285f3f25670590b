"""The export stage: the optimised surface and field become files that other programs open.

UV atlas, baked textures, GLB and OBJ in metres with +Y up, `model.json`, a preview and a turntable.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from reconstruction.appearance import ENVIRONMENT_FILE, ENVIRONMENT_HEIGHT, SceneLight, load_light
from reconstruction.atlas import UvMesh, decimate, unwrap
from reconstruction.bake import to_8bit
from reconstruction.data import Views, load_views
from reconstruction.field import load_field
from reconstruction.formats import write_formats
from reconstruction.light import save_environment
from reconstruction.maps import bake_maps, matt, to_material, without_occlusion
from reconstruction.measure import comparison_picture, mean_figures, measure_view
from reconstruction.model import Material, ModelInfo, Origin, TexturedModel, reference_from_model
from reconstruction.preview import Studio, write_preview, write_turntable
from reconstruction.refine_textures import closest, observe, refine
from reconstruction.render import Renderer, straight_srgb
from reconstruction.unseen import seen_faces
from reconstruction.view_renderer import expose
from scan2twin.config import ExportConfig
from scan2twin.frames import Dataset
from scan2twin.progress import Progress
from scan2twin.stages import StageInputs, StageResult

PREVIEW_SIDE = 1024  # pixels
PICTURE_QUALITY = 85  # of JPEG, for pictures to look at
CHECK_EVERY = 8  # of the photos one is not fitted to but tells whether occlusion and fitting bring the model closer
GLOSS_SHARE = 0.2  # of the headlight; with less of it little tells gloss from colour, and the material is matt


def run(inputs: StageInputs, outputs: Path, config: ExportConfig, progress: Progress) -> StageResult:
    """Write the model's files (see `reconstruction.formats`), model.json, preview.png and turntable.mp4.

    `heldout/NNNNNN.jpg` shows each held-out photo, the finished model from the same place, and the error ×4.

    Raises:
        ReconstructionError: the mesh holds no surface.

    """
    torch.set_num_threads(1)  # as in reconstruct: OpenMP's spinning threads would only take the kernels' cores
    dataset = Dataset.read(inputs["mask"] / "dataset.json")
    with np.load(inputs["reconstruct"] / "mesh.npz") as arrays:
        surface = arrays["vertices"], arrays["faces"]
    vertices, faces = decimate(*surface, config.max_triangles)
    warnings = []
    if len(faces) < len(surface[1]):
        warnings.append(
            f"the mesh was decimated from {len(surface[1])} to {len(faces)} triangles; "
            "raise export.max_triangles to keep more"
        )
    if not dataset.metric:
        warnings.append("the scale is unknown: sizes are in the capture's own unit, not in metres")

    progress.start("unwrap and bake", 2)
    mesh = unwrap(vertices, faces, config.texture_size)
    progress.advance()
    light = load_light(inputs["reconstruct"])
    material = find_material(mesh, light, inputs, dataset, config, progress)
    figures = measure_heldout(mesh, material, light, inputs, dataset, outputs / "heldout", progress)

    placed, model_to_reference = place(mesh, np.array(dataset.unit_to_reference), config.origin)
    model = TexturedModel(placed, material, dataset.capture_id, provenance(inputs, dataset))
    write_formats(model, outputs, config)
    info = ModelInfo(
        capture_id=dataset.capture_id,
        metric=dataset.metric,
        model_to_reference=model_to_reference.tolist(),
        size_m=np.ptp(placed.vertices, axis=0).tolist(),
        triangles=len(placed.faces),
        vertices=len(placed.vertices),
        texture_size=config.texture_size,
        headlight_share=0.0 if light is None else float(light.share),
        environment=export_environment(light, outputs),
    )
    info.write(outputs / "model.json")

    standing, _ = place(mesh, np.array(dataset.unit_to_reference), "floor")
    studio = Studio(replace(model, mesh=standing), light)
    azimuth = studio.best_side()
    write_preview(studio, azimuth, PREVIEW_SIDE, outputs / "preview.png")
    if config.turntable_frames:
        path = outputs / "turntable.mp4"
        write_turntable(studio, azimuth, config.turntable_frames, config.turntable_size, path, progress)
    counted = info.model_dump(include={"triangles", "vertices", "size_m", "metric"})
    return StageResult({**counted, **figures}, warnings)


def find_material(
    mesh: UvMesh,
    light: SceneLight | None,
    inputs: StageInputs,
    dataset: Dataset,
    config: ExportConfig,
    progress: Progress,
) -> Material:
    """Bake the field over a mesh (unit frame) and fit the textures to the photos, where other photos agree."""
    views, gains = refined_views(inputs, dataset)
    maps = bake_maps(mesh, seen_faces(mesh, views), load_field(inputs["reconstruct"] / "field.pt"), config.texture_size)
    glossy = light is not None and (light.environment is not None or float(light.share) >= GLOSS_SHARE)
    if not glossy:
        maps = matt(maps)
    progress.advance()
    observed = observe(mesh, views, gains, config.texture_size)
    lit_by = None if light is None else light.ready()
    check = observed[::CHECK_EVERY]
    if lit_by is not None:  # the field was fitted without occlusion and may have taken the shadows into its colours
        maps = closest([without_occlusion(maps), maps], check, lit_by)
    if config.refine_iterations:
        fitted = [photo for i, photo in enumerate(observed) if i % CHECK_EVERY]
        refined = refine(maps, fitted, lit_by, config.refine_iterations, progress, glossy)
        maps = closest([maps, refined], check, lit_by)
    return Material(to_8bit(maps[..., :3]).numpy()) if light is None else to_material(maps)


def export_environment(light: SceneLight | None, outputs: Path) -> str | None:
    """Write the environment, where one was found, and return its file's name. Frames differ by a translation only."""
    if light is None or light.environment is None:
        return None
    save_environment(outputs / ENVIRONMENT_FILE, light.environment.to_equirectangular(ENVIRONMENT_HEIGHT))
    return ENVIRONMENT_FILE


def refined_views(inputs: StageInputs, dataset: Dataset) -> tuple[Views, torch.Tensor]:
    """Return the training views at full size, with cameras and weights from reconstruct, and their gains (B, 3)."""
    views, _ = load_views(inputs["mask"], dataset, "train", dataset.resolution)
    with np.load(inputs["reconstruct"] / "views.npz") as refined:
        cameras, weight = torch.from_numpy(refined["camera_from_unit"]), torch.from_numpy(refined["weight"])
        gains = torch.from_numpy(refined["gain"])
    return replace(views, camera_from_unit=cameras, weight=weight), gains


def measure_heldout(
    mesh: UvMesh,
    material: Material,
    light: SceneLight | None,
    inputs: StageInputs,
    dataset: Dataset,
    pictures: Path,
    progress: Progress,
) -> dict[str, float | None]:
    """Compare the finished textured mesh (unit frame) with the held-out photos; means over the views, PSNR in dB.

    A picture of each comparison is left in the folder `pictures`. Each view has the pose and exposure that
    reconstruct fitted to it: see `reconstruction.reconstruct`.
    """
    views, _ = load_views(inputs["mask"], dataset, "heldout", dataset.resolution)
    if len(views) == 0:
        return {}
    with np.load(inputs["reconstruct"] / "heldout" / "cameras.npz") as fitted:
        cameras, gains = torch.from_numpy(fitted["clip_from_unit"]), torch.from_numpy(fitted["gain"])
    renderer = Renderer(mesh, material, light)
    figures = []
    pictures.mkdir()
    progress.start("measure", len(views))
    for k, (camera, gain) in enumerate(zip(cameras, gains, strict=True)):
        photo, window = views.images[k].float() / 255, views.window(k)
        drawn = straight_srgb(renderer.draw_through(camera, (dataset.resolution, dataset.resolution)).flip(0))
        color, coverage = expose(drawn[..., :3], gain).clamp(0, 1), drawn[..., 3:]
        drawn = torch.cat([color * coverage, coverage], dim=2)
        figures.append(measure_view(drawn[window], photo[window]))
        picture = Image.fromarray(comparison_picture(drawn, photo))
        picture.save(pictures / f"{views.index[k]:06d}.jpg", quality=PICTURE_QUALITY)
        progress.advance()
    means = mean_figures(figures)
    return {
        "heldout_psnr": means["psnr"],
        "heldout_psnr_foreground": means["psnr_foreground"],
        "heldout_ssim": means["ssim"],
        "mask_iou_heldout": means["mask_iou"],
    }


def place(mesh: UvMesh, unit_to_reference: np.ndarray[Any, Any], origin: Origin) -> tuple[UvMesh, np.ndarray[Any, Any]]:
    """Move a mesh from the unit frame to the model frame; returns it with `model_to_reference` (4, 4).

    `unit_to_reference` (4, 4) is a similarity without rotation, so normals stay as they are.
    """
    reference = mesh.vertices.astype(np.float64) @ unit_to_reference[:3, :3].T + unit_to_reference[:3, 3]
    model_to_reference = reference_from_model(reference, origin)
    vertices = (reference - model_to_reference[:3, 3]).astype(np.float32)
    return replace(mesh, vertices=vertices), model_to_reference


def provenance(inputs: StageInputs, dataset: Dataset) -> dict[str, Any]:
    """Return what the GLB says of its origin: the capture, its scale, and each earlier stage's fingerprint and code."""
    return {
        "capture_id": dataset.capture_id,
        "metric": dataset.metric,
        "unit": "metre" if dataset.metric else "unknown",
        "fingerprints": {name: manifest["fingerprint"] for name, manifest in inputs.manifests.items()},
        "versions": {name: manifest["code_version"] for name, manifest in inputs.manifests.items()},
    }

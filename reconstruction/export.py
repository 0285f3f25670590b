"""The export stage: the optimised surface and field become files that other programs open.

UV atlas, baked textures, GLB and OBJ in metres with +Y up, `model.json`, a preview and a turntable.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from reconstruction.appearance import SceneLight, load_light
from reconstruction.atlas import UvMesh, decimate, unwrap
from reconstruction.bake import bake, dilate, to_8bit
from reconstruction.color import linear_to_srgb
from reconstruction.data import Views, load_views
from reconstruction.field import load_field
from reconstruction.formats import write_formats
from reconstruction.measure import comparison_picture, measure_view
from reconstruction.model import Material, ModelInfo, Origin, TexturedModel, reference_from_model
from reconstruction.preview import Studio, write_preview, write_turntable
from reconstruction.refine_textures import observe, refine
from reconstruction.render import Renderer, straight_srgb
from reconstruction.unseen import Bools, fill_unseen, seen_faces
from reconstruction.view_renderer import expose
from scan2twin.config import ExportConfig
from scan2twin.frames import Dataset
from scan2twin.progress import Progress
from scan2twin.stages import StageInputs, StageResult

PREVIEW_SIDE = 1024  # pixels
PICTURE_QUALITY = 85  # of JPEG, for pictures to look at
GLOSS_SHARE = 0.2  # of the headlight; with less of it little tells gloss from colour, and the material is matt


def run(inputs: StageInputs, outputs: Path, config: ExportConfig, progress: Progress) -> StageResult:
    """Write the model's files (see `reconstruction.formats`), model.json, preview.png and turntable.mp4.

    `heldout/NNNNNN.jpg` shows each held-out photo, the finished model from the same place, and the error ×4.

    Raises:
        ReconstructionError: the mesh holds no surface.

    """
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
    views, gains = refined_views(inputs, dataset)
    light = load_light(inputs["reconstruct"])
    base_color, finish = bake_material(
        mesh, seen_faces(mesh, views), inputs["reconstruct"] / "field.pt", config.texture_size
    )
    progress.advance()
    if config.refine_iterations:
        observed = observe(mesh, views, gains, config.texture_size, None if light is None else light.ready(), finish)
        base_color = refine(base_color, observed, config.refine_iterations, progress)
    packed = None
    if light is not None and float(light.share) >= GLOSS_SHARE:
        packed = to_8bit(torch.cat([torch.ones_like(finish[..., :1]), finish], dim=2)).numpy()
    material = Material(to_8bit(base_color).numpy(), packed)
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


def bake_material(mesh: UvMesh, seen: Bools, field_file: Path, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bake the field saved at `field_file` over a mesh, both in the unit frame.

    Returns the base colour (size, size, 3), sRGB, and roughness and metallic (size, size, 2), all in [0, 1].
    Faces that no photo shows, those not `seen` (F,), continue the colours round them.
    """
    field = load_field(field_file)
    values, covered = bake(mesh, lambda points: torch.cat(field(points)[:3], dim=1), size)
    encoded = torch.cat([linear_to_srgb(values[..., :3]), values[..., 3:]], dim=2)
    base_color, finish = torch.split(dilate(fill_unseen(encoded, mesh, seen), covered), [3, 2], dim=2)
    return base_color.contiguous(), finish.contiguous()


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
) -> dict[str, float]:
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
    return {
        "heldout_psnr": round(float(np.mean([f.psnr for f in figures])), 4),
        "heldout_psnr_foreground": round(float(np.mean([f.psnr_foreground for f in figures])), 4),
        "mask_iou_heldout": round(float(np.mean([f.mask_iou for f in figures])), 4),
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

"""The export stage: the optimised surface and field become files that other programs open.

UV atlas, baked textures, GLB and OBJ in metres with +Y up, `model.json`, a preview and a turntable.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reconstruction.atlas import UvMesh, decimate, unwrap
from reconstruction.bake import bake, dilate, to_8bit
from reconstruction.color import linear_to_srgb
from reconstruction.field import load_field
from reconstruction.gltf import write_glb
from reconstruction.model import Material, ModelInfo, TexturedModel, reference_from_model
from reconstruction.obj import write_obj
from reconstruction.preview import Studio, write_preview, write_turntable
from scan2twin.config import ExportConfig
from scan2twin.frames import Dataset
from scan2twin.progress import Progress
from scan2twin.stages import StageInputs, StageResult

PREVIEW_SIDE = 1024  # pixels


def run(inputs: StageInputs, outputs: Path, config: ExportConfig, progress: Progress) -> StageResult:
    """Write model.glb, model.obj with its MTL and textures, model.json, preview.png and turntable.mp4.

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
    material = bake_material(mesh, inputs["reconstruct"] / "field.pt", config.texture_size)
    progress.advance()

    placed, model_to_reference = place_on_floor(mesh, np.array(dataset.unit_to_reference))
    model = TexturedModel(placed, material, dataset.capture_id, provenance(inputs, dataset))
    write_glb(model, outputs / "model.glb")
    write_obj(model, outputs)
    info = ModelInfo(
        capture_id=dataset.capture_id,
        metric=dataset.metric,
        model_to_reference=model_to_reference.tolist(),
        size_m=np.ptp(placed.vertices, axis=0).tolist(),
        triangles=len(placed.faces),
        vertices=len(placed.vertices),
        texture_size=config.texture_size,
    )
    info.write(outputs / "model.json")

    studio, front = Studio(model), front_azimuth(dataset)
    write_preview(studio, front, PREVIEW_SIDE, outputs / "preview.png")
    if config.turntable_frames:
        path = outputs / "turntable.mp4"
        write_turntable(studio, front, config.turntable_frames, config.turntable_size, path, progress)
    return StageResult(
        {"triangles": info.triangles, "vertices": info.vertices, "size_m": info.size_m, "metric": info.metric},
        warnings,
    )


def bake_material(mesh: UvMesh, field_file: Path, size: int) -> Material:
    """Bake the field saved at `field_file` (unit frame) over a mesh (unit frame) to textures of `size` texels."""
    field = load_field(field_file)
    albedo, covered = bake(mesh, lambda points: field(points).albedo, size)
    return Material(base_color=to_8bit(linear_to_srgb(dilate(albedo, covered))).numpy())


def place_on_floor(mesh: UvMesh, unit_to_reference: np.ndarray[Any, Any]) -> tuple[UvMesh, np.ndarray[Any, Any]]:
    """Move a mesh from the unit frame to the model frame; returns it with `model_to_reference` (4, 4).

    `unit_to_reference` (4, 4) is a similarity without rotation, so normals stay as they are.
    """
    reference = mesh.vertices.astype(np.float64) @ unit_to_reference[:3, :3].T + unit_to_reference[:3, 3]
    model_to_reference = reference_from_model(reference)
    vertices = (reference - model_to_reference[:3, 3]).astype(np.float32)
    return replace(mesh, vertices=vertices), model_to_reference


def front_azimuth(dataset: Dataset) -> float:
    """Return the azimuth (radians round +Y, from +Z towards +X) that the scan began from: most start in front."""
    first = min(dataset.frames, key=lambda frame: frame.index)
    x, z = first.camera_to_unit[0][3], first.camera_to_unit[2][3]
    return float(np.arctan2(x, z))


def provenance(inputs: StageInputs, dataset: Dataset) -> dict[str, Any]:
    """Return what the GLB says of its origin: the capture, and the fingerprint of every stage before."""
    fingerprints = {name: manifest["fingerprint"] for name, manifest in inputs.manifests.items()}
    return {"capture_id": dataset.capture_id, "metric": dataset.metric, "fingerprints": fingerprints}

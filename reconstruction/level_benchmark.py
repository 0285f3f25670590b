"""What the smaller GLBs of a finished model cost in likeness, on the photos that it was not made from."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from reconstruction.appearance import load_light
from reconstruction.export import measure_heldout
from reconstruction.gltf import read_glb
from reconstruction.lods import LEVELS
from reconstruction.model import ModelInfo
from scan2twin.errors import InputError
from scan2twin.frames import Dataset
from scan2twin.progress import Progress
from scan2twin.stages import StageInputs


@dataclass(frozen=True)
class LevelFigures:
    """One GLB of a model, as it was written: decimated, with the textures as they are compressed."""

    file: str
    megabytes: float  # 10⁶ bytes
    triangles: int
    texture_size: int
    heldout_psnr: float  # dB, over whole views, as in report.json
    heldout_psnr_foreground: float  # dB, over the object
    loss: float  # dB over the object, against model.glb


def measure_levels(inputs: StageInputs, progress: Progress) -> list[LevelFigures]:
    """Measure model.glb and its levels in the output of export; `inputs` also has mask and reconstruct.

    Raises:
        InputError: no view was held out.

    """
    dataset = Dataset.read(inputs["mask"] / "dataset.json")
    info = ModelInfo.read(inputs["export"] / "model.json")
    unit_from_model = np.linalg.inv(dataset.unit_to_reference) @ np.array(info.model_to_reference)
    light = load_light(inputs["reconstruct"])
    found: list[LevelFigures] = []
    for name in ("model.glb", *(f"model_{level}.glb" for level in LEVELS)):
        path = inputs["export"] / name
        if not path.is_file():
            continue
        mesh, material = read_glb(path)
        # Both frames have the same axes: normals stay.
        vertices = mesh.vertices @ unit_from_model[:3, :3].T + unit_from_model[:3, 3]
        mesh = replace(mesh, vertices=vertices.astype(np.float32))
        with tempfile.TemporaryDirectory(prefix="scan2twin-levels-") as pictures:
            figures = measure_heldout(mesh, material, light, inputs, dataset, Path(pictures) / "heldout", progress)
        whole, object_only = figures.get("heldout_psnr"), figures.get("heldout_psnr_foreground")
        if whole is None or object_only is None:
            raise InputError(f"capture {dataset.capture_id}: no view was held out, so there is nothing to measure on")
        found.append(
            LevelFigures(
                name, path.stat().st_size / 1e6, len(mesh.faces), len(material.base_color), whole, object_only,
                (found[0].heldout_psnr_foreground if found else object_only) - object_only,
            )
        )  # fmt: skip
    return found

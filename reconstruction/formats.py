"""Every file that a finished model is written to, for the programs that open it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reconstruction.gltf import write_glb
from reconstruction.lods import LEVELS, level_of_detail
from reconstruction.model import TexturedModel
from reconstruction.obj import write_obj
from reconstruction.ply import write_ply
from reconstruction.usd import write_usdz
from scan2twin.config import ExportConfig


def write_formats(model: TexturedModel, folder: Path, config: ExportConfig) -> None:
    """Write `model` into `folder` as model.glb and what `config` asks for."""
    write_glb(model, folder / "model.glb")
    levels: dict[str, TexturedModel] = {name: level_of_detail(model, LEVELS[name]) for name in config.levels}
    for name, level in levels.items():
        write_glb(level, folder / f"model_{name}.glb", config.level_textures, config.level_compression)
    turned = z_up(model) if config.up == "z" else model
    if "obj" in config.formats:
        write_obj(turned, folder)
    if "ply" in config.formats:
        write_ply(turned, folder / "model.ply")
    if "usdz" in config.formats:
        write_usdz(levels.get("ar") or level_of_detail(model, LEVELS["ar"]), folder / "model.usdz")


def z_up(model: TexturedModel) -> TexturedModel:
    """Return `model` with +Z up, as CAD programs have it: (x, y, z) becomes (x, -z, y), a turn about x."""

    def turn(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.stack([vectors[:, 0], -vectors[:, 2], vectors[:, 1]], axis=1)

    mesh = model.mesh
    return replace(model, mesh=replace(mesh, vertices=turn(mesh.vertices), normals=turn(mesh.normals)))

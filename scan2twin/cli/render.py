"""`scan2twin render`: pictures of a finished model from given cameras."""

import importlib
from pathlib import Path
from typing import Annotated

import typer

from scan2twin.cli.options import make_progress


def render(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `scan2twin run` left.")],
    cameras: Annotated[Path, typer.Option("--cameras", help="Cameras in transforms.json layout, reference frame.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures.")],
    maps: Annotated[
        bool, typer.Option("--maps", help="Also draw albedo, normals, roughness, metallic, occlusion.")
    ] = False,
) -> None:
    """Render a model under its recovered light from given cameras (camera-to-reference, OpenGL axes, metres)."""
    renderer = importlib.import_module("reconstruction.render")  # by name: scan2twin depends on no stage
    progress = make_progress()
    try:
        renderer.render_model(model, cameras, out, progress, maps)
    finally:
        progress.close()

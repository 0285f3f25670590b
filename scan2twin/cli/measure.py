"""`scan2twin measure` and `scan2twin compare`: sizes of a model, and how far two models are apart."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import scan2twin.api as api
from scan2twin.cli.options import JsonOption, console, print_json
from scan2twin.errors import InputError

MODEL_HELP = "A folder that `scan2twin run` left, or a .glb, .obj, .ply, .stl or .off file."


class Unit(StrEnum):
    """What the numbers in a mesh file count."""

    M = "m"
    CM = "cm"
    MM = "mm"
    IN = "in"


class Align(StrEnum):
    """How A may be moved onto B."""

    RIGID = "rigid"
    SIMILARITY = "similarity"
    NONE = "none"


def measure(
    model: Annotated[Path, typer.Argument(help=MODEL_HELP)],
    unit: Annotated[Unit, typer.Option("--unit", help="Unit of the file's numbers.")] = Unit.M,
    distance: Annotated[
        list[str] | None,
        typer.Option("--distance", help="Two points in metres, as X,Y,Z:X,Y,Z. Repeatable.", show_default=False),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Measure a model: size, surface, volume, whether it is closed, distances between points."""
    found = api.measure(model, unit=unit.value, points=[_pair(text) for text in distance or []])
    if json_:
        print_json(found.model_dump())
        return
    factor, name = (1000.0, "mm") if found.metric else (1.0, "units")
    table = Table(box=None, show_header=False)
    if not found.metric:
        table.add_row("scale", "unknown")
    table.add_row("size", " × ".join(f"{factor * x:.4g}" for x in found.size) + f" {name}")
    table.add_row("surface", f"{factor**2 * found.surface_area:.5g} {name}²")
    closed = "closed" if found.watertight else "not closed, so it has no volume"
    table.add_row("volume", f"{factor**3 * found.volume:.5g} {name}³" if found.volume is not None else "–")
    table.add_row("mesh", f"{found.triangles} triangles, {found.parts} part(s), {closed}")
    for text, length in zip(distance or [], found.distances, strict=True):
        table.add_row(text, f"{factor * length:.5g} {name}")
    console.print(table)


def compare(
    a: Annotated[Path, typer.Argument(help=f"The model to judge. {MODEL_HELP}")],
    b: Annotated[Path, typer.Argument(help="The model to judge it by: CAD, or an older scan.")],
    align: Annotated[
        Align, typer.Option("--align", help="How A is moved onto B first; similarity also changes its size.")
    ] = Align.RIGID,
    unit_a: Annotated[Unit, typer.Option("--unit-a", help="Unit of A's numbers.")] = Unit.M,
    unit_b: Annotated[Unit, typer.Option("--unit-b", help="Unit of B's numbers; CAD files are often in mm.")] = Unit.M,
    map_: Annotated[
        Path | None, typer.Option("--map", help="GLB to write: A coloured by its distance, red outside, blue inside B.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Say how far model A is from model B, after moving it onto B."""
    found = api.compare(a, b, align=align.value, unit_a=unit_a.value, unit_b=unit_b.value, map_file=map_)
    if json_:
        print_json(found.model_dump())
        return
    factor, unit = (1000.0, "mm") if found.metric else (1.0, "units")
    table = Table(box=None, show_header=False)
    for name, value in (
        ("mean distance", found.mean), ("root mean square", found.rms), ("95 % are within", found.p95),
        ("largest (Hausdorff)", found.hausdorff), ("mean, outside +", found.mean_signed),
    ):  # fmt: skip
        table.add_row(name, f"{factor * value:.4g} {unit}")
    if not found.metric:
        table.add_row("scale", "unknown; --align similarity lets A take B's")
    if align is Align.SIMILARITY:
        table.add_row("scale of A", f"{found.scale:.5f}")
    if map_ is not None:
        table.add_row("map", f"{map_}, colours end at ± {factor * found.color_range:.4g} {unit}")
    console.print(table)


def _pair(text: str) -> tuple[list[float], list[float]]:
    try:
        first, second = ([float(x) for x in point.split(",")] for point in text.split(":"))
    except ValueError:
        first, second = [], []
    if not len(first) == len(second) == 3:
        raise InputError(f"--distance {text}: expected two points, X,Y,Z:X,Y,Z, in metres")
    return first, second

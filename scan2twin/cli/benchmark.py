"""`scan2twin benchmark`: figures and ratios of whole captures and of the parts."""

from pathlib import Path
from typing import Annotated

import typer

from scan2twin.cli.options import JsonOption, PresetOption, console
from scan2twin.config import Preset

app = typer.Typer(help="Measure whole captures and the parts of the pipeline.", no_args_is_help=True)


@app.command("capture")
def capture(
    capture: Annotated[Path, typer.Argument(help="Capture bundle: a folder or a .zip.")],
    truth: Annotated[
        Path | None, typer.Option("--truth", help="Folder with mesh.obj and poses.json: measures geometry too.")
    ] = None,
    preset: PresetOption = Preset.STANDARD,
    out: Annotated[Path | None, typer.Option("--out", help="Keep the model in this folder.")] = None,
    json_: JsonOption = False,
) -> None:
    """Run every stage on a capture twice, in its own store: time, memory, held-out views, distance to the truth."""
    from scan2twin.benchmark import benchmark_capture, figures_json, print_figures

    figures = benchmark_capture(capture, truth, preset, out)
    print_figures(figures, console)
    if json_:
        print(figures_json(figures))

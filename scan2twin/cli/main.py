"""The `scan2twin` command. Heavy libraries are imported by the commands that need them, never here."""

import sys
from typing import Annotated

import typer

from scan2twin import __version__
from scan2twin.cli import airflow, benchmark, catalogue, doctor, importing, masks, measure, pipeline, render, weights
from scan2twin.cli.options import console
from scan2twin.errors import Scan2TwinError

app = typer.Typer(
    name="scan2twin",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From a phone capture to a metric, textured 3D model.",
    epilog="Exit codes: 0 done; 1 a stage failed; 2 bad input or configuration (the same input fails again); "
    "3 the store cannot be reached (try later); 4 memory or disk ran out (smaller preset or larger machine); "
    "130 interrupted.",
)
app.command("run")(pipeline.run)
app.command("import")(importing.import_)
app.command("upload")(importing.upload)
app.command("stage")(pipeline.stage)
app.command("demo")(airflow.demo)
app.command("up")(airflow.up)
app.command("captures")(catalogue.captures)
app.command("models")(catalogue.models)
app.command("render")(render.render)
app.command("measure")(measure.measure)
app.command("compare")(measure.compare)
app.add_typer(benchmark.app, name="benchmark")
app.add_typer(masks.app, name="masks")
app.add_typer(weights.app, name="weights")
app.command("doctor")(doctor.doctor)

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"scan2twin {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Hold the options of the bare command."""


def main() -> None:
    """Run the command line; every error of ours ends as one message and its exit code, never as a traceback."""
    try:
        app()
    except Scan2TwinError as error:
        console.print("[bold red]error:[/]", end=" ")
        console.print(str(error), markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.print("interrupted")
        sys.exit(INTERRUPTED)

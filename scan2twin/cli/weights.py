"""`scan2twin weights`: networks that are not shipped, fetched before they are needed."""

from typing import Annotated

import typer
from rich.table import Table

from scan2twin.cli.options import JsonOption, console, make_progress, print_json
from scan2twin.errors import InputError
from scan2twin.weights import digest, fetch_weights, weights_folder

app = typer.Typer(
    help="Fetch networks that are not shipped. They are kept in $SCAN2TWIN_WEIGHTS; no stage ever downloads one.",
    no_args_is_help=True,
)


@app.command("fetch")
def fetch(
    url: Annotated[str, typer.Argument(help="Address of the file, http or https.")],
    sha256: Annotated[str | None, typer.Option("--sha256", help="What its SHA-256 must be.")] = None,
    sha512: Annotated[str | None, typer.Option("--sha512", help="What its SHA-512 must be.")] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the file here. Default: the last part of the address.")
    ] = None,
) -> None:
    """Fetch one file, check it and keep it. A file that is there and right is not fetched again."""
    expected = {algorithm: value for algorithm, value in (("sha256", sha256), ("sha512", sha512)) if value}
    if len(expected) != 1:
        raise InputError(f"{url}: give its --sha256 or its --sha512, so that nothing else can take its place")
    ((algorithm, value),) = expected.items()
    path = fetch_weights(url, algorithm, value, make_progress(), name)
    console.print(f"{path} is there and right; use it with --set mask.network={path.name}", markup=False)


@app.command("list")
def list_(json_: JsonOption = False) -> None:
    """List the files in the weights folder with their SHA-256."""
    folder = weights_folder()
    paths = sorted(path for path in folder.glob("[!.]*") if path.is_file())
    rows = [{"name": path.name, "bytes": path.stat().st_size, "sha256": digest(path, "sha256")} for path in paths]
    if json_:
        print_json(rows)
        return
    table = Table("file", "MB", "SHA-256", box=None)
    for row in rows:
        table.add_row(str(row["name"]), f"{int(str(row['bytes'])) / 1e6:.1f}", str(row["sha256"]))
    console.print(table if rows else f"nothing in {folder}; `scan2twin weights fetch URL --sha256 …` puts a file there")

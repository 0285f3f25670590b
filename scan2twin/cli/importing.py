"""`scan2twin import`: a scan from elsewhere as a capture bundle."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from scan2twin.cli.options import console
from scan2twin.errors import InputError


def import_(
    source: Annotated[Path, typer.Argument(help="LLFF folder: images/, poses_bounds.npy, optional masks/.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the capture bundle; must not exist.")],
    capture_id: Annotated[str | None, typer.Option("--id", help="Capture id. Default: from the folder's name.")] = None,
) -> None:
    """Turn a scan of another tool into a capture bundle, ready for `scan2twin run`."""
    from scan2twin.importers.llff import import_llff  # pulls in image libraries

    if out.exists():
        raise InputError(f"--out {out}: exists already; name a folder that does not")
    partial = out.with_name(f".{out.name}.part")
    try:
        partial.mkdir(parents=True)
        name = import_llff(source, partial, capture_id)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    console.print(f"capture [bold]{name}[/] written to {out}")

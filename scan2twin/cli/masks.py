"""`scan2twin masks`: look at a capture's masks, edit them, and let the run go on from there."""

from pathlib import Path
from typing import Annotated

import typer

from scan2twin.cli.options import ConfigOption, PresetOption, SetOption, StoreOption, configuration, console
from scan2twin.config import Preset
from scan2twin.errors import InputError
from scan2twin.store import open_store

app = typer.Typer(
    help="Look at a capture's masks and edit them. The next run goes on from there; the capture stays as it is.",
    no_args_is_help=True,
)

CaptureArgument = Annotated[str, typer.Argument(help="Capture id, as `scan2twin captures` lists it.")]


@app.command("fetch")
def fetch(
    capture: CaptureArgument,
    folder: Annotated[Path, typer.Argument(help="Folder for photos, masks and contact sheet; must not exist.")],
    store: StoreOption = None,
    preset: PresetOption = Preset.STANDARD,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Copy the masks that the stage mask made, with their square photos, into a folder."""
    from scan2twin.edited_masks import fetch_masks

    if folder.exists():
        raise InputError(f"{folder}: exists already; name a folder that does not")
    count = fetch_masks(open_store(store), capture, configuration(preset, config, set_), folder)
    console.print(
        f"{count} masks in {folder / 'masks'}, their photos in {folder / 'images'}. Edit what is wrong "
        f"(white = object), then: scan2twin masks add {capture} {folder}",
        markup=False,
    )


@app.command("add")
def add(
    capture: CaptureArgument,
    folder: Annotated[
        Path, typer.Argument(help="Folder that `masks fetch` made, or of NNNNNN.png as large as the photos.")
    ],
    store: StoreOption = None,
) -> None:
    """Put edited masks beside the capture; masks that were not changed are left alone."""
    from scan2twin.edited_masks import add_masks

    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    frames, corrections = add_masks(open_store(store), capture, folder)
    console.print(
        f"masks of frames {', '.join(map(str, frames))} are stored; capture {capture} has {len(corrections.masks)} "
        "corrected masks now. Run it again: it goes on from the stage mask",
        markup=False,
    )


@app.command("remove")
def remove(
    capture: CaptureArgument,
    frames: Annotated[list[int], typer.Argument(help="Frames whose corrected mask is taken back.")],
    store: StoreOption = None,
) -> None:
    """Take corrected masks back; the frames get their own masks again."""
    from scan2twin.store.captures import find_capture
    from scan2twin.store.corrections import corrections_of, remove_corrections

    artifacts = open_store(store)
    found = find_capture(artifacts, capture)
    if unknown := sorted(set(frames) - {mask.frame for mask in corrections_of(found).masks}):
        raise InputError(f"capture {capture!r} has no corrected masks of frames {unknown}")
    left = remove_corrections(artifacts, found, frames)
    console.print(f"capture {capture} has {len(left.masks)} corrected masks now", markup=False)

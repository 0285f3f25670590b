"""`scan2twin import` and `scan2twin upload`: a scan from elsewhere as a capture, in a folder or in the store."""

from pathlib import Path
from typing import Annotated

import typer

from scan2twin.cli.options import JsonOption, StoreOption, console, make_progress, print_json
from scan2twin.errors import InputError
from scan2twin.logs import configure_logging
from scan2twin.store import open_store
from scan2twin.store.captures import import_capture


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="A scan of another tool, folder, zip or file: transforms.json (nerfstudio, instant-ngp, NeRFCapture, "
            "Blender), Polycam raw data, Record3D .r3d, Stray Scanner, COLMAP, LLFF, a folder of photos, a video."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the capture bundle; must not exist.")],
    capture_id: Annotated[str | None, typer.Option("--id", help="Capture id. Default: from the source's name.")] = None,
    metres_per_unit: Annotated[
        float | None,
        typer.Option("--metres-per-unit", min=1e-6, help="True length of the scan's unit, where the scan has none."),
    ] = None,
    marker_side: Annotated[
        float | None,
        typer.Option(
            "--marker-side", min=1e-4, help="Side of a printed ArUco or AprilTag marker beside the object, in metres."
        ),
    ] = None,
    max_frames: Annotated[
        int, typer.Option("--max-frames", min=3, max=2000, help="Frames taken of a video or a recording at most.")
    ] = 120,
) -> None:
    """Turn a scan of another tool into a capture bundle, ready for `scan2twin run`, which also takes it directly."""
    from scan2twin.importers import import_scan  # pulls in image libraries

    if out.exists():
        raise InputError(f"--out {out}: exists already; name a folder that does not")
    progress = make_progress()
    try:
        imported = import_scan(source, out, capture_id, metres_per_unit, max_frames, progress, marker_side)
    finally:
        progress.close()
    for warning in imported.warnings:
        console.print("[yellow]warning:[/]", end=" ")
        console.print(warning, markup=False)
    console.print(
        f"{imported.kind}: capture [bold]{imported.capture_id}[/], {imported.frames} frames, written to {out}"
    )


def upload(
    sources: Annotated[
        list[Path], typer.Argument(help="Captures (folder or .zip), or scans of other tools that `import` takes.")
    ],
    store: StoreOption = None,
    json_: JsonOption = False,
) -> None:
    """Put captures, or scans of other tools, into the store. The same content already there is left alone."""
    configure_logging()  # for the warnings of an import
    artifacts = open_store(store)
    progress = make_progress()
    try:
        names = [import_capture(artifacts, source, progress) for source in sources]
    finally:
        progress.close()
    if json_:
        print_json(names)
        return
    for name in names:
        console.print(f"capture [bold]{name}[/] is in {artifacts.uri}")

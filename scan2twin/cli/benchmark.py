"""`scan2twin benchmark`: figures and ratios of whole captures and of the parts."""

import importlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from scan2twin.cli.options import JsonOption, PresetOption, StoreOption, console, print_json
from scan2twin.config import Preset, resolve_config

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


@app.command("store")
def store(
    store: StoreOption = None,
    megabytes: Annotated[int, typer.Option("--megabytes", min=1, help="How much to move each way.")] = 1000,
    json_: JsonOption = False,
) -> None:
    """Measure a store beside its server's raw speed; without --store, an embedded S3 server started for it."""
    from scan2twin.s3server import EmbeddedS3
    from scan2twin.store.benchmark import benchmark_store

    if store:
        figures = benchmark_store(store, megabytes * 1_000_000)
    else:
        with EmbeddedS3() as server:
            os.environ.update(server.environment)
            figures = benchmark_store(server.uri, megabytes * 1_000_000)
    table = Table("", "upload", "download", title=f"{figures['files']} files of 500 KB, {figures['store']}")
    table.add_row("store, 10⁶ bytes/s", f"{figures['upload_mb_s']:.0f}", f"{figures['download_mb_s']:.0f}")
    table.add_row("raw, 10⁶ bytes/s", f"{figures['raw_upload_mb_s']:.0f}", f"{figures['raw_download_mb_s']:.0f}")
    table.add_row("ratio", f"{figures['upload_ratio']:.2f}", f"{figures['download_ratio']:.2f}")
    table.add_row("memory growth, MB", f"{figures['memory_growth_mb']:.0f}", "")
    console.print(table)
    if json_:
        print_json(figures)


@app.command("reconstruct")
def reconstruct(
    mesh: Annotated[Path, typer.Argument(help="Textured mesh that is the truth: OBJ with MTL, or GLB.")],
    preset: PresetOption = Preset.STANDARD,
    resolution: Annotated[int | None, typer.Option("--resolution", min=32, help="Side of the views, pixels.")] = None,
    iterations: Annotated[int | None, typer.Option("--iterations", min=1)] = None,
    json_: JsonOption = False,
) -> None:
    """Draw a known mesh from 70 sides, reconstruct it with exact poses, and time the kernels."""
    module = importlib.import_module("reconstruction.benchmark")  # by name: scan2twin depends on no stage
    options = {"resolution": resolution, "iterations": iterations}
    overrides = {name: value for name, value in options.items() if value is not None}
    config = resolve_config(preset, {"reconstruct": overrides}).reconstruct
    known, rows = module.KnownMesh(mesh), []
    table = Table("iterations", "CPU s", "held-out dB", "foreground dB", "mask IoU", "Chamfer %", "triangles")

    def found(figures: Any) -> None:
        rows.append(asdict(figures))
        table.add_row(
            str(figures.iterations), f"{figures.cpu_seconds:.1f}", f"{figures.heldout_psnr:.2f}",
            f"{figures.heldout_psnr_foreground:.2f}", f"{figures.mask_iou:.4f}", f"{figures.chamfer_percent:.3f}",
            str(figures.triangles),
        )  # fmt: skip

    quarter = max(config.iterations // 4, 1)
    module.benchmark_method(known, config, range(quarter, config.iterations + 1, quarter), found)
    kernels = module.benchmark_kernels(known, config)
    times = Table("kernel", "CPU ms")
    for kernel in kernels:
        times.add_row(kernel.kernel, f"{kernel.milliseconds:.2f}")
    console.print(table, times)
    if json_:
        print_json({"method": rows, "kernels": [asdict(kernel) for kernel in kernels]})

"""`scan2twin benchmark`: figures and ratios of whole captures and of the parts."""

import importlib
import os
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from scan2twin.cli.airflow import SAMPLE
from scan2twin.cli.options import (
    ConfigOption,
    JsonOption,
    PresetOption,
    SetOption,
    StoreOption,
    configuration,
    console,
    make_progress,
    print_json,
)
from scan2twin.config import Preset
from scan2twin.errors import InputError
from scan2twin.store import open_store

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


@app.command("airflow")
def airflow(
    capture: Annotated[
        Path, typer.Argument(help="Capture bundle: a folder or a .zip.", show_default="the sample")
    ] = SAMPLE,
    json_: JsonOption = False,
) -> None:
    """Measure Airflow's own time around the stages, and how fast a run is that finds all its work done."""
    from scan2twin.orchestration_benchmark import benchmark_airflow

    _print_figures("a run that finds all its work done", benchmark_airflow(capture), json_)


@app.command("night")
def night(
    captures: Annotated[int, typer.Option("--captures", min=1, help="How many were recorded that day.")] = 5000,
    json_: JsonOption = False,
) -> None:
    """Measure how a night's captures are chosen: time and memory."""
    from scan2twin.orchestration_benchmark import benchmark_night

    _print_figures("choosing the captures of a night", benchmark_night(captures), json_)


@app.command("reconstruct")
def reconstruct(
    source: Annotated[
        Path,
        typer.Argument(
            help="What to reconstruct: a textured mesh, which is then the truth (OBJ with MTL, GLB); the mask stage's "
            "folder; a capture (folder or .zip); or an LLFF folder."
        ),
    ],
    preset: PresetOption = Preset.STANDARD,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Time the method and measure it on held-out views; a mesh is drawn from 70 sides first, and kernels are timed."""
    from scan2twin.benchmark import mask_dataset

    module = importlib.import_module("reconstruction.benchmark")  # by name: scan2twin depends on no stage
    settings = configuration(preset, config, set_)
    progress, kernels = make_progress(), []
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    try:
        if source.is_file() and source.suffix != ".zip":
            known = module.KnownMesh(source)
            figures = module.benchmark_known_mesh(known, settings, progress)
            kernels = module.benchmark_kernels(known, settings.reconstruct)
        else:
            with mask_dataset(source, settings, progress) as folder:
                figures = module.benchmark_dataset(folder, settings, progress)
    finally:
        progress.close()
    table = Table(title=f"{figures.dataset}, preset {preset}", show_header=False)
    for name, value in asdict(figures).items():
        table.add_row(
            name.replace("_", " "), "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        )
    console.print(table)
    times = Table("kernel", "CPU ms")
    for kernel in kernels:
        times.add_row(kernel.kernel, f"{kernel.milliseconds:.2f}")
    if kernels:
        console.print(times)
    if json_:
        print_json({"method": asdict(figures), "kernels": [asdict(kernel) for kernel in kernels]})


@app.command("levels")
def levels(
    capture_id: Annotated[str, typer.Argument(help="A capture in the store whose model is made.")],
    store: StoreOption = None,
    preset: PresetOption = Preset.STANDARD,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Say how large the GLBs of a finished model are, and what each loses in likeness on held-out photos."""
    from scan2twin.runner import fetch_outputs

    module = importlib.import_module("reconstruction.level_benchmark")  # by name: scan2twin depends on no stage
    settings = configuration(preset, config, set_)
    progress = make_progress()
    with tempfile.TemporaryDirectory(prefix="scan2twin-benchmark-") as folder:
        stages = ("mask", "reconstruct", "export")
        inputs = fetch_outputs(open_store(store), capture_id, settings, stages, Path(folder))
        try:
            rows = [asdict(row) for row in module.measure_levels(inputs, progress)]
        finally:
            progress.close()
    console.print(_figures_table(f"{capture_id}: levels", rows))
    if json_:
        print_json(rows)


@app.command("preprocessing")
def preprocessing(
    data: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders with capture/ and truth/; or captures and other scans without truth, which get the noise "
            "table only. Without any, a small capture is drawn."
        ),
    ] = None,
    network: Annotated[
        str | None, typer.Option("--network", help="Measure masks by this ONNX network too: path or name.")
    ] = None,
    effect: Annotated[
        bool, typer.Option("--effect/--no-effect", help="Also reconstruct with each kind of poses and masks.")
    ] = True,
    preset: PresetOption = Preset.DRAFT,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Measure poses and masks against the truth, and what their errors cost the model."""
    from scan2twin.importers import as_bundle

    module = importlib.import_module("preprocessing.benchmark")  # by name: scan2twin depends on no stage
    settings = configuration(preset, config, set_)
    found: dict[str, Any] = {}
    sources: list[Path | None] = [*data] if data else [None]
    for source in sources:
        with tempfile.TemporaryDirectory(prefix="scan2twin-benchmark-") as folder, ExitStack() as stack:
            work, progress = Path(folder), make_progress()
            try:
                if source is None:
                    draw = importlib.import_module("preprocessing.synthetic_capture").make_synthetic_capture
                    data_folder = draw(work / "painted-box")
                elif (source / "truth").is_dir():
                    data_folder = source
                else:
                    data_folder = stack.enter_context(as_bundle(source, progress))[0]
                benchmark = module.Benchmark(data_folder, work / "stages", settings, progress)
                found[benchmark.name] = {"warnings": benchmark.warnings}
                for title, measure in (
                    ("poses", benchmark.pose_table),
                    ("noise", benchmark.noise_table),
                    ("masks", partial(benchmark.mask_table, network)),
                    ("effect", benchmark.effect_table if effect else list),
                ):
                    rows = [asdict(row) for row in measure()]
                    found[benchmark.name][title] = rows
                    progress.close()
                    if rows:
                        console.print(_figures_table(f"{benchmark.name}: {title}", rows))
            finally:
                progress.close()
    if json_:
        print_json(found)


def _print_figures(title: str, figures: dict[str, float], as_json: bool) -> None:
    table = Table(title=title, show_header=False)
    for name, value in figures.items():
        table.add_row(name.removesuffix("_s").replace("_", " "), f"{value:.4g}{' s' if name.endswith('_s') else ''}")
    console.print(table)
    if as_json:
        print_json(figures)


def _figures_table(title: str, rows: list[dict[str, Any]]) -> Table:
    """Return a table with the rows' keys as its columns."""

    def text(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4g}"
        return " ".join(map(str, value)) if isinstance(value, list | tuple) else "-" if value is None else str(value)

    table = Table(*(name.replace("_", " ") for name in rows[0]), title=title)
    for row in rows:
        table.add_row(*map(text, row.values()))
    return table

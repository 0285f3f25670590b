"""`scan2twin run` and `scan2twin stage`: the pipeline without Airflow, and what a pod runs."""

import json
import logging
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from scan2twin.cli.options import (
    AllowSmallerOption,
    ConfigOption,
    JsonOption,
    PresetOption,
    SetOption,
    StoreOption,
    allowed_fallback,
    configuration,
    console,
    make_progress,
    print_json,
)
from scan2twin.config import Preset
from scan2twin.errors import InputError
from scan2twin.logs import configure_logging, log_context
from scan2twin.runner import StageRun, fetch_model, import_capture, output_folder, run_pipeline, run_stage
from scan2twin.stages import STAGES, Stage, stage_named
from scan2twin.store import open_store


def run(
    capture: Annotated[Path, typer.Argument(help="Capture bundle (folder or .zip), or a scan that `import` takes.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the model and its report.")],
    store: StoreOption = None,
    preset: PresetOption = Preset.STANDARD,
    config: ConfigOption = None,
    set_: SetOption = None,
    allow_smaller_preset: AllowSmallerOption = False,
    json_: JsonOption = False,
) -> None:
    """Take a capture through every stage and leave the model in a folder. Finished stages are not repeated."""
    settings = configuration(preset, config, set_)
    if not capture.exists():
        raise InputError(f"{capture}: no such file or folder; give a capture bundle (folder or .zip) or another scan")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: this is a file; name a folder")
    if not console.is_terminal:
        configure_logging()
    started = time.monotonic()
    artifacts = open_store(store)
    progress = make_progress()
    try:
        capture_id = import_capture(artifacts, capture, progress)
    finally:
        progress.close()
    announced = _Announcer()
    try:
        runs = run_pipeline(
            artifacts, capture_id, settings, progress,
            fallback=allowed_fallback(allow_smaller_preset, preset, config, set_),
            on_stage_start=announced.start, on_stage_end=announced.end,
        )  # fmt: skip
    finally:
        progress.close()
    fetch_model(artifacts, capture_id, out, runs[-1].manifest)
    seconds = round(time.monotonic() - started, 1)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    if json_:
        skipped = [done.manifest.stage for done in runs if done.skipped]
        print_json(
            {"capture_id": capture_id, "out": str(out), "seconds": seconds, "skipped": skipped, "report": report}
        )
        return
    summarise(report, out, seconds)


class _Announcer:
    """Says on the terminal which stage runs and how each ended."""

    def __init__(self) -> None:
        self._position = 0

    def start(self, stage: Stage) -> None:
        self._position += 1
        console.print(f"[bold]{self._position}/{len(STAGES)} {stage.name}[/]  [dim]{stage.summary}[/]")

    def end(self, stage: Stage, run: StageRun) -> None:
        manifest = run.manifest
        if run.skipped:
            console.print("    [dim]already done[/]")
            return
        console.print(
            f"    [green]done[/] in {manifest.durations.total_s:.1f} s, peak memory {manifest.peak_memory_mb:.0f} MB"
        )
        for warning in manifest.warnings:
            console.print("    [yellow]warning:[/]", end=" ")
            console.print(warning, markup=False)


def summarise(report: dict[str, Any], out: Path, seconds: float) -> None:
    """Say on the terminal what model lies in `out` and how good it is."""
    size = " × ".join(f"{length:.3f}" for length in report["size_m"])
    unit = "m" if report.get("metric", True) else "units (scale unknown)"
    quality = "none held out, so its quality is not measured"
    if report["heldout_psnr_foreground"] is not None:
        quality = (
            f"PSNR {report['heldout_psnr_foreground']:.1f} dB on the object, mask IoU {report['mask_iou_heldout']:.3f}"
        )
    console.print(
        f"\n[bold green]model ready[/] in {seconds} s: {out / 'model.glb'}\n"
        f"  size {size} {unit}, {report['triangles']} triangles\n"
        f"  views never trained on: {quality}"
    )


def stage(
    name: Annotated[str, typer.Argument(help="Stage: " + ", ".join(known.name for known in STAGES) + ".")],
    capture: Annotated[str, typer.Option("--capture", help="Capture id, as `scan2twin captures` lists it.")],
    store: StoreOption = None,
    preset: PresetOption = Preset.STANDARD,
    config: ConfigOption = None,
    set_: SetOption = None,
    allow_smaller_preset: AllowSmallerOption = False,
    result: Annotated[
        Path | None, typer.Option("--result", help="File to write the manifest's place and fingerprint to, as JSON.")
    ] = None,
    run_id: Annotated[str, typer.Option("--run", envvar="SCAN2TWIN_RUN", help="Run id to show in log lines.")] = "-",
    json_: JsonOption = False,
) -> None:
    """Run one stage of a capture in the store: what a pod or an Airflow task does."""
    settings = configuration(preset, config, set_)
    configure_logging()
    log = logging.getLogger("scan2twin")
    artifacts = open_store(store)
    progress = make_progress()
    try:
        with log_context(run=run_id):
            fallback = allowed_fallback(allow_smaller_preset, preset, config, set_)
            done = run_stage(artifacts, capture, name, settings, progress, fallback=fallback)
    finally:
        progress.close()
    for warning in done.manifest.warnings:
        log.warning("%s: %s", name, warning)
    folder = output_folder(capture, stage_named(name), done.manifest.fingerprint)
    answer = {
        "manifest": f"{artifacts.uri}/{folder}/manifest.json",
        "fingerprint": done.manifest.fingerprint,
        "skipped": done.skipped,
    }
    if result:
        _write_whole(result, json.dumps(answer))
    if json_:
        print_json(answer)


def _write_whole(path: Path, text: str) -> None:
    """Write `text` so that a reader (the XCom sidecar) sees all of it or nothing."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)

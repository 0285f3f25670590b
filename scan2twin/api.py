"""scan2twin from Python: the commands of the command line as functions.

    from scan2twin import api

    model = api.reconstruct("my-capture.zip", "my-model", preset="draft")
    print(model.report["size_m"], api.measure(model.folder).volume)

Paths may be strings. Heavy libraries are imported by the functions that need them. Every function raises what the
command line prints: `scan2twin.errors.Scan2TwinError` and its kinds.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from scan2twin.config import resolve_config
from scan2twin.errors import InputError
from scan2twin.progress import LogProgress, Progress
from scan2twin.runner import fetch_model, import_capture, run_pipeline
from scan2twin.store import open_store

AnyPath = str | PathLike[str]
Unit = Literal["m", "cm", "mm", "in"]


@dataclass(frozen=True)
class Model:
    """A finished model: its folder, and what report.json says."""

    folder: Path
    capture_id: str
    report: Mapping[str, Any]

    @property
    def glb(self) -> Path:
        """The model as binary glTF."""
        return self.folder / "model.glb"


def reconstruct(
    capture: AnyPath,
    out: AnyPath,
    *,
    preset: Literal["draft", "standard", "high"] = "standard",
    config: Mapping[str, Mapping[str, Any]] | None = None,
    store: str | None = None,
    progress: Progress | None = None,
) -> Model:
    """Take a capture bundle (folder or .zip) or another tool's scan through every stage; the model goes to `out`.

    `config` overrides options of the preset, such as {"reconstruct": {"iterations": 500}}. `store` is where finished
    stages are kept, a folder or an S3 URL; by default a folder among the user's data. Finished stages are not repeated.
    """
    settings = resolve_config(preset, {name: dict(values) for name, values in (config or {}).items()})
    source, folder = Path(capture), Path(out)
    if not source.exists():
        raise InputError(f"{source}: no such file or folder; give a capture bundle (folder or .zip)")
    artifacts = open_store(store)
    with_progress = progress or LogProgress()
    try:
        capture_id = import_capture(artifacts, source, with_progress)
        runs = run_pipeline(artifacts, capture_id, settings, with_progress)
    finally:
        with_progress.close()
    fetch_model(artifacts, capture_id, folder, runs[-1].manifest)
    return open_model(folder)


def import_scan(
    source: AnyPath,
    out: AnyPath,
    *,
    capture_id: str | None = None,
    metres_per_unit: float | None = None,
    marker_side: float | None = None,
    progress: Progress | None = None,
) -> Any:
    """Write a scan of another tool as a capture bundle into the new folder `out`; returns `importers.Imported`.

    A scan without true size gets it by `metres_per_unit`, or by a printed marker in it with sides of `marker_side`
    metres. `reconstruct` takes such scans directly, too.
    """
    importers = importlib.import_module("scan2twin.importers")  # pulls in image libraries
    return importers.import_scan(
        Path(source), Path(out), capture_id, metres_per_unit, progress=progress, marker_side=marker_side
    )


def upload(source: AnyPath, store: str | None = None, progress: Progress | None = None) -> str:
    """Put a capture bundle, or a scan of another tool, into the store; returns its capture id.

    The same content already there is left alone; other content under the same id is replaced.
    """
    with_progress = progress or LogProgress()
    try:
        return import_capture(open_store(store), Path(source), with_progress)
    finally:
        with_progress.close()


def open_model(folder: AnyPath) -> Model:
    """Open a folder that `reconstruct` or `scan2twin run` left. Raises InputError if it is none."""
    file = Path(folder) / "report.json"
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        return Model(Path(folder), report["capture_id"], report)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not the report of a model ({error}); give a folder that a run left") from None


def render(model: AnyPath, cameras: AnyPath, out: AnyPath, progress: Progress | None = None) -> None:
    """Draw the model in a folder from every camera of a transforms.json into the folder `out`, one PNG each."""
    renderer = importlib.import_module("reconstruction.render")  # by name: scan2twin depends on no stage
    renderer.render_model(Path(model), Path(cameras), Path(out), progress or LogProgress())


def measure(model: AnyPath, *, unit: Unit = "m", points: Sequence[tuple[Sequence[float], Sequence[float]]] = ()) -> Any:
    """Measure a model folder or mesh file; returns `reconstruction.solid.Measurements`.

    `unit` is what the file's numbers count; `points` are pairs of points (x, y, z) in metres to take distances between.
    """
    return importlib.import_module("reconstruction.solid").measure(Path(model), points, unit)


def compare(
    a: AnyPath,
    b: AnyPath,
    *,
    align: Literal["rigid", "similarity", "none"] = "rigid",
    unit_a: Unit = "m",
    unit_b: Unit = "m",
    map_file: AnyPath | None = None,
) -> Any:
    """Say how far model `a` is from model `b` after moving it onto `b`; returns `reconstruction.compare.Comparison`.

    `map_file` is a GLB to write: `a`, coloured by its distance, red outside and blue inside `b`.
    """
    comparing = importlib.import_module("reconstruction.compare")
    place = None if map_file is None else Path(map_file)
    return comparing.compare(Path(a), Path(b), align=align, unit_a=unit_a, unit_b=unit_b, map_file=place)

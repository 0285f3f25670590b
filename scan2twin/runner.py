"""Runs stages against a store: finds what is committed, downloads, runs, measures, commits.

A pod, an Airflow task and `scan2twin run` all come through here. What is to be done follows from the store and the
configuration alone: every fingerprint is known before its stage has run, so nothing is passed from task to task.
"""

import errno
import importlib.metadata
import logging
import os
import platform
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from types import FrameType

from scan2twin import __version__, stages
from scan2twin.config import PipelineConfig
from scan2twin.errors import InputError, MissingArtifactError, ResourceError
from scan2twin.fallback import NOTE, Fallback, note_out_of_memory, ran_out_of_memory
from scan2twin.logs import log_context
from scan2twin.memory import PeakMemory
from scan2twin.progress import Progress
from scan2twin.stages import CAPTURE, CORRECTIONS, GIVEN, Stage, StageInputs, StageResult
from scan2twin.store import ArtifactStore
from scan2twin.store.artifacts import ARTIFACTS, MANIFEST, commit, discard, download, new_attempt, read_manifest, upload
from scan2twin.store.captures import StoredCapture, download_capture, find_capture, import_capture
from scan2twin.store.checkpoints import CheckpointKeeper, discard_checkpoints
from scan2twin.store.corrections import download_corrections
from scan2twin.store.manifest import Durations, Manifest, fingerprint
from scan2twin.store.models import MODELS, fetch_model, publish
from scan2twin.store.sources import capture_or_import
from scan2twin.store.transfer import parallel

__all__ = ["StageRun", "fetch_model", "find_capture", "import_capture", "run_pipeline", "run_stage"]

log = logging.getLogger("scan2twin")

COMMIT_VARIABLE = "SCAN2TWIN_COMMIT"  # set in images, which have no git checkout
# Libraries whose release can change a result.
_LIBRARIES = (
    "numba", "numpy", "onnxruntime", "opencv-python", "pillow", "pycolmap", "scipy", "torch", "trimesh", "xatlas",
)  # fmt: skip


@dataclass(frozen=True)
class StageRun:
    """What came of asking for a stage."""

    manifest: Manifest
    skipped: bool  # it was committed before, nothing ran


def run_stage(
    store: ArtifactStore,
    capture_id: str,
    stage_name: str,
    config: PipelineConfig,
    progress: Progress,
    workdir: Path | None = None,
    *,
    fallback: Fallback | None = None,
) -> StageRun:
    """Bring about the output of one stage of a capture and commit it; an output that is committed is left alone.

    Where memory runs out, now or in an earlier try of any stage, the stage runs with `fallback` instead of `config`.
    Temporary files go below `workdir` (default: the system's) and are gone afterwards, also after an error or
    SIGTERM. Raises MissingArtifactError if an earlier stage has to run first, InputError for a stage or capture
    that does not exist, ResourceError if memory or disk ran out, StoreError, and whatever the stage raises.
    """
    try:
        stage = stages.stage_named(stage_name)
    except KeyError:
        names = ", ".join(known.name for known in stages.STAGES)
        raise InputError(f"stage {stage_name!r}: no such stage; choose one of {names}") from None
    with _sigterm_unwinds(), log_context(capture=capture_id, stage=stage_name):
        with _resource_errors(stage, workdir):
            capture = capture_or_import(store, capture_id, progress)
        return _run_or_fall_back(_Job(store, capture, config, progress, workdir, fallback), stage)


def run_pipeline(
    store: ArtifactStore,
    capture_id: str,
    config: PipelineConfig,
    progress: Progress,
    *,
    workdir: Path | None = None,
    fallback: Fallback | None = None,
    on_stage_start: Callable[[Stage], None] = lambda stage: None,
    on_stage_end: Callable[[Stage, StageRun], None] = lambda stage, run: None,
) -> list[StageRun]:
    """Run every stage in order, each as `run_stage` does; what is committed is skipped."""
    runs = []
    with _sigterm_unwinds(), log_context(capture=capture_id):
        job = _Job(store, find_capture(store, capture_id), config, progress, workdir, fallback)
        for stage in stages.STAGES:
            on_stage_start(stage)
            with log_context(stage=stage.name):
                run = _run_or_fall_back(job, stage)
            on_stage_end(stage, run)
            runs.append(run)
    return runs


def fingerprints(capture: StoredCapture, config: PipelineConfig) -> dict[str, str]:
    """Return the fingerprint of the capture and of every stage's output for it under `config`."""
    known = {CAPTURE: capture.fingerprint, CORRECTIONS: capture.corrections_fingerprint}
    for stage in stages.STAGES:
        known[stage.name] = fingerprint(stage, config.section(stage.name), {name: known[name] for name in stage.inputs})
    return known


def output_folder(capture_id: str, stage: Stage, stage_fingerprint: str) -> str:
    """Return the key prefix under which a stage's output is committed."""
    if stage.publishes:
        return f"{MODELS}/{capture_id}/{stage_fingerprint}"
    return f"{ARTIFACTS}/{capture_id}/{stage.name}/{stage_fingerprint}"


def committed_outputs(
    store: ArtifactStore, capture_id: str, config: PipelineConfig, names: Sequence[str]
) -> dict[str, tuple[str, Manifest] | None]:
    """Return for each stage in `names` its folder and the manifest of what it left there; None if it has not ended.

    Raises MissingArtifactError if there is no such capture.
    """
    known = fingerprints(find_capture(store, capture_id), config)
    found: dict[str, tuple[str, Manifest] | None] = {}
    for name in names:
        folder = output_folder(capture_id, stages.stage_named(name), known[name])
        manifest = read_manifest(store, folder)
        found[name] = None if manifest is None else (folder, manifest)
    return found


def fetch_outputs(
    store: ArtifactStore, capture_id: str, config: PipelineConfig, names: Sequence[str], target: Path
) -> StageInputs:
    """Write the committed outputs of the stages `names` below `target`. Raises MissingArtifactError."""
    folders = {}
    for name, found in committed_outputs(store, capture_id, config, names).items():
        if found is None:
            raise MissingArtifactError(
                f"capture {capture_id!r} has no committed output of stage {name} under this configuration; run it first"
            )
        folders[name] = target / name
        folders[name].mkdir(parents=True)
        download(store, *found, folders[name])
    return StageInputs(folders)


@dataclass(frozen=True)
class _Job:
    """A capture to be worked on."""

    store: ArtifactStore
    capture: StoredCapture
    config: PipelineConfig
    progress: Progress
    workdir: Path | None
    fallback: Fallback | None = None  # used where `config` takes too much memory
    warnings: Sequence[str] = ()  # of every stage that runs

    @property
    def capture_id(self) -> str:
        return self.capture.location.capture_id

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        return fingerprints(self.capture, self.config)

    def folder(self, stage: Stage) -> str:
        return output_folder(self.capture_id, stage, self.fingerprints[stage.name])


def _run_or_fall_back(job: _Job, stage: Stage) -> StageRun:
    """Run `stage` as asked for, or with the job's fallback where memory ran out in this stage or before it."""
    fallback = job.fallback
    if fallback is None:
        return _run(job, stage)
    smaller = replace(job, config=fallback.config, fallback=None, warnings=[fallback.warning])
    upto = stages.STAGES[: stages.STAGES.index(stage) + 1]
    if not any(parallel(lambda earlier: ran_out_of_memory(job.store, job.folder(earlier)), upto)):
        try:
            return _run(job, stage)
        except ResourceError as error:
            note_out_of_memory(job.store, job.folder(stage), str(error))
            log.warning("%s; going on with preset %s instead of %s", error, fallback.preset, fallback.requested)
    # Outside of the handler, which would keep what fills the memory. Earlier stages may differ between the presets.
    return [_run(smaller, earlier) for earlier in upto][-1]


def _run(job: _Job, stage: Stage) -> StageRun:
    folder = job.folder(stage)
    manifest = read_manifest(job.store, folder)
    skipped = manifest is not None
    if manifest is None:
        earlier = _earlier_manifests(job, stage)
        with (
            _resource_errors(stage, job.workdir),
            tempfile.TemporaryDirectory(prefix="scan2twin-", dir=job.workdir) as temporary,
        ):
            manifest = _run_and_commit(job, stage, earlier, Path(temporary))
    log.info("%s at %s/%s", "committed before" if skipped else "committed", folder, MANIFEST)
    if stage.publishes:
        publish(job.store, manifest)
    return StageRun(manifest, skipped)


def _earlier_manifests(job: _Job, stage: Stage) -> dict[str, Manifest]:
    """Return the manifests of the stages before `stage`. Raises MissingArtifactError if it needs one that is missing.

    A stage that `stage` does not read from may be missing: an old output may have been deleted to save space.
    """
    before = stages.STAGES[: stages.STAGES.index(stage)]
    found = parallel(lambda earlier: read_manifest(job.store, job.folder(earlier)), before)
    manifests = {earlier.name: manifest for earlier, manifest in zip(before, found, strict=True) if manifest}
    missing = [name for name in stage.inputs if name not in GIVEN and name not in manifests]
    if missing:
        first = _first_to_run(missing[0], manifests)
        raise MissingArtifactError(
            f"stage {stage.name}: capture {job.capture_id!r} has no committed output of stage {missing[0]} under "
            f"this configuration; run the stage {first} first, or the whole pipeline"
        )
    return manifests


def _first_to_run(name: str, manifests: Mapping[str, Manifest]) -> str:
    """Return the earliest stage, among `name` and what it reads from, that is not committed."""
    for earlier in stages.stage_named(name).inputs:
        if earlier not in GIVEN and earlier not in manifests:
            return _first_to_run(earlier, manifests)
    return name


def _run_and_commit(job: _Job, stage: Stage, earlier: Mapping[str, Manifest], temporary: Path) -> Manifest:
    started_at, clock = datetime.now(UTC), time.monotonic()
    folders = {name: temporary / "inputs" / name for name in stage.inputs}
    for name, target in folders.items():
        target.mkdir(parents=True)
        if name == CAPTURE:
            download_capture(job.store, job.capture, target)
        elif name == CORRECTIONS:
            download_corrections(job.store, job.capture, target)
        else:
            download(job.store, job.folder(stages.stage_named(name)), earlier[name], target)
    downloaded = time.monotonic()

    outputs = temporary / "outputs"
    outputs.mkdir()
    folder, attempt = job.folder(stage), new_attempt()
    checkpoints = temporary / "checkpoints" if stage.keeps_checkpoints else None
    inputs = StageInputs(folders, {name: manifest.to_json() for name, manifest in earlier.items()}, checkpoints)
    section = job.config.section(stage.name)
    keeper = CheckpointKeeper(job.store, folder, checkpoints) if checkpoints else nullcontext()
    with keeper, PeakMemory() as memory:
        try:
            run = stage.load()
            _take_sigterm_back()
            result: StageResult = run(inputs, outputs, section, job.progress)
        finally:
            job.progress.close()  # its last line belongs to this stage
    ran = time.monotonic()

    try:
        files = upload(job.store, folder, attempt, outputs)
        uploaded = time.monotonic()
        manifest = Manifest(
            capture_id=job.capture_id,
            stage=stage.name,
            stage_version=stage.version,
            fingerprint=job.fingerprints[stage.name],
            inputs={name: job.fingerprints[name] for name in stage.inputs},
            config=section.model_dump(mode="json"),
            seed=getattr(section, "seed", None),
            code_version=_code_version(),
            libraries=_library_versions(),
            host=socket.gethostname(),
            attempt=attempt,
            files=files,
            metrics=dict(result.metrics),
            warnings=[*job.warnings, *result.warnings],
            durations=Durations(
                total_s=uploaded - clock,
                download_s=downloaded - clock,
                run_s=ran - downloaded,
                upload_s=uploaded - ran,
            ),
            peak_memory_mb=memory.peak_bytes / 1e6,
            started_at=started_at,
            finished_at=datetime.now(UTC),
        )
    except BaseException:
        discard(job.store, folder, attempt)
        raise
    # From here on nothing is discarded: a commit that failed on its way back may still have reached the store.
    committed = commit(job.store, folder, manifest)
    job.store.delete(f"{folder}/{NOTE}")  # of an earlier try on a smaller machine
    if checkpoints:
        discard_checkpoints(job.store, folder)
    return committed


@contextmanager
def _resource_errors(stage: Stage, workdir: Path | None) -> Iterator[None]:
    """Translate every way in which memory or disk can run out into ResourceError with its remedy."""
    try:
        yield
    except Exception as error:
        if _is_out_of_memory(error):
            first_line = (str(error) or type(error).__name__).splitlines()[0]
            raise ResourceError(
                f"stage {stage.name}: memory ran out ({first_line}); choose a smaller preset (draft) or a machine "
                f"with more memory than {stage.resources.memory}"
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"stage {stage.name}: the disk is full ({error}); free some space in "
                f"{workdir or tempfile.gettempdir()} or set TMPDIR to a larger disk"
            ) from error
        raise


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    # torch is recognised by name, so that a stage that never imports it does not pay for it. On CPU it raises a
    # plain RuntimeError from its default allocator.
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def _take_sigterm_back() -> None:
    """Install Python's handler again: native libraries (pycolmap's glog) put their own in its place when imported."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that a stopped pod or task cleans up behind itself; exit code 143."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would cut the cleaning up short
        raise SystemExit(128 + signum)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@cache
def _code_version() -> str:
    """Return the package's version and, where it is known, the git commit it was run from."""
    commit_id = os.environ.get(COMMIT_VARIABLE, "")
    checkout = Path(__file__).parent.parent
    if not commit_id and (checkout / ".git").exists():
        with suppress(OSError, subprocess.SubprocessError):
            commit_id = subprocess.run(
                ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"],
                capture_output=True, text=True, check=True, timeout=10,
            ).stdout.strip()  # fmt: skip
    return f"{__version__}+{commit_id}" if commit_id else __version__


@cache
def _library_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions

"""The one description of the pipeline's stages, and the contract each of them keeps.

A stage is a module with `run(inputs, outputs, config, progress) -> StageResult`. It reads folders, writes a
folder, and knows neither Airflow nor S3. The CLI, the local runner, the DAG and the pod specs are all built
from `STAGES`, so a stage is added or swapped here and nowhere else.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scan2twin.progress import Progress

CAPTURE = "capture"  # the name under which a stage reads the raw capture bundle
CORRECTIONS = "corrections"  # … and the masks that a person has corrected (store.corrections); an empty folder if none
GIVEN = (CAPTURE, CORRECTIONS)  # the inputs that no stage makes


@dataclass(frozen=True)
class StageResult:
    """What a stage says of its work; recorded in its manifest."""

    metrics: Mapping[str, Any] = field(default_factory=dict)  # plain JSON values
    warnings: Sequence[str] = ()  # plain words, with the remedy; shown to the user in report.json


@dataclass(frozen=True)
class StageInputs:
    """What a stage reads.

    `folders` maps each input (a stage's name, `CAPTURE`, …) to the folder with its files, read-only by
    agreement. `manifests` maps the name of every stage that ran before to its manifest as plain JSON.
    `checkpoints` is there for a stage that keeps them: what a killed run of this stage with these inputs and this
    configuration left in that folder is found again. A file there is replaced by renaming `*.part` or `*.partial`.
    """

    folders: Mapping[str, Path]
    manifests: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    checkpoints: Path | None = None

    def __getitem__(self, name: str) -> Path:
        """Return the folder of input `name`."""
        return self.folders[name]


@dataclass(frozen=True)
class Resources:
    """What one run of a stage asks of a machine."""

    cpu: str = "2"
    memory: str = "3Gi"
    memory_high: str | None = None  # with the preset `high`, where that is more
    ephemeral_storage: str = "8Gi"
    gpu: int = 0  # GPUs used where the cluster has them; every stage also runs without
    timeout_s: int = 3600

    def memory_with(self, preset: str) -> str:
        """Return the memory that a run with this preset asks for."""
        return (preset == "high" and self.memory_high) or self.memory


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline."""

    name: str
    module: str  # imported only when the stage runs, so that Airflow never imports torch
    inputs: tuple[str, ...]  # folders it reads: earlier stages and CAPTURE
    summary: str
    version: int = 1  # part of the fingerprint: raise it when the same input should give another output
    resources: Resources = Resources()
    keeps_checkpoints: bool = False  # runs so long that a killed run should go on where it was
    publishes: bool = False  # its output goes to models/<capture_id>/ and `latest` flips to it

    def load(self) -> Callable[[StageInputs, Path, Any, Progress], StageResult]:
        """Import the stage's module and return its `run`."""
        run: Callable[[StageInputs, Path, Any, Progress], StageResult] = importlib.import_module(self.module).run
        return run


STAGES: tuple[Stage, ...] = (
    Stage(
        "validate", "preprocessing.validate", (CAPTURE,),
        "schema, limits, hashes, images decodable, enough usable frames", version=2,
    ),
    Stage(
        "condition", "preprocessing.condition", (CAPTURE, "validate"),
        "orientation, undistortion, centred principal point, working resolution; frames worth keeping", version=2,
    ),
    Stage(
        "compensate_poses", "preprocessing.compensate_poses", ("condition",),
        "anchor-relative quaternion compensation, normalisation to the unit box", version=2,
    ),
    Stage(
        "refine_poses", "preprocessing.refine_poses", ("condition", "compensate_poses"),
        "bundle adjustment with the tracker's poses as priors, every frame checked; exposures", version=4,
    ),
    Stage(
        "mask", "preprocessing.mask", (CAPTURE, CORRECTIONS, "condition", "refine_poses"),
        "square crops round the object, alpha masks: the dataset", version=5,
    ),
    Stage(
        "reconstruct", "reconstruction.reconstruct", ("mask",),
        "differentiable rendering: geometry, appearance, light", version=5,
        resources=Resources(memory="6Gi", memory_high="12Gi", gpu=1, timeout_s=4 * 3600), keeps_checkpoints=True,
    ),
    Stage(
        "export", "reconstruction.export", ("mask", "reconstruct"),
        "UV atlas, textures, GLB, USDZ, OBJ and PLY in metres, preview and turntable", version=4,
        resources=Resources(memory_high="12Gi"),
    ),
    Stage(
        "publish", "reconstruction.publish", ("refine_poses", "mask", "reconstruct", "export"),
        "final checks, the report, models/<capture_id>/ and its `latest` pointer", version=2, publishes=True,
    ),
)  # fmt: skip


def stage_named(name: str) -> Stage:
    """Return the stage called `name`; KeyError if there is none."""
    return {stage.name: stage for stage in STAGES}[name]

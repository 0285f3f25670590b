"""What a stage's output is called and what is written down about it."""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from scan2twin.config import Section
from scan2twin.errors import InputError
from scan2twin.stages import Stage
from scan2twin.store.base import check_key


def _safe_name(name: str) -> str:
    try:
        return check_key(name)
    except InputError as error:  # pydantic collects ValueError
        raise ValueError(str(error)) from None


SafeName = Annotated[str, AfterValidator(_safe_name)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class FileEntry(BaseModel):
    """A file of a capture or of a stage's output."""

    model_config = ConfigDict(frozen=True)

    name: SafeName  # path below the folder, with `/`
    size: int = Field(ge=0)  # bytes
    sha256: Sha256


class Durations(BaseModel):
    """Where a stage's wall time went, seconds."""

    total_s: float
    download_s: float  # inputs: transfer and check
    run_s: float  # the stage's own work
    upload_s: float


class Manifest(BaseModel):
    """`manifest.json`: commits an output, so it is written last. Keys that a later release adds are ignored."""

    schema_: Literal["scan2twin.manifest/1"] = Field("scan2twin.manifest/1", alias="schema")
    capture_id: str
    stage: str
    stage_version: int
    fingerprint: Sha256
    inputs: dict[str, Sha256]  # fingerprint of every input
    config: dict[str, Any]  # the stage's resolved section
    seed: int | None = None
    code_version: str  # package version, with the git commit where it is known
    libraries: dict[str, str]  # versions of the libraries that shape results
    host: str
    attempt: SafeName  # the files are below `<this manifest's folder>/<attempt>/`
    files: list[FileEntry]
    metrics: dict[str, Any] = {}
    warnings: list[str] = []
    durations: Durations
    peak_memory_mb: float  # resident memory of the process and its children, 10⁶ bytes
    started_at: datetime  # UTC
    finished_at: datetime

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain JSON values, keyed as in the file."""
        return self.model_dump(mode="json", by_alias=True)


def fingerprint(stage: Stage, config: Section, inputs: Mapping[str, str]) -> str:
    """Return the SHA-256 that names a stage's output before it exists.

    It covers everything that decides the output: stage name and version, its config section and the fingerprints
    of its inputs (of a capture: the SHA-256 of its capture.json, which lists the hash of every other file).
    Canonical JSON: sorted keys, no spaces, ASCII.
    """
    identity = {
        "stage": stage.name,
        "version": stage.version,
        "config": config.model_dump(mode="json"),
        "inputs": dict(inputs),
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()

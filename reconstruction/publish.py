"""The publish stage: the last look at the model, and the report that goes with it.

Everything that leaves the pipeline is opened again here as a stranger would open it, so that a model that cannot
be used is never published.
"""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reconstruction.atlas import UvMesh
from reconstruction.gltf import read_glb
from reconstruction.model import ModelInfo
from scan2twin.config import PublishConfig
from scan2twin.errors import ReconstructionError
from scan2twin.frames import Document
from scan2twin.progress import Progress
from scan2twin.stages import StageInputs, StageResult

PLAUSIBLE_M = (0.001, 100.0)  # longest side of a scanned object, metres: beyond, the tracker's scale is broken

Manifests = Mapping[str, Mapping[str, Any]]


class Report(Document):
    """`report.json`: how good the model is, what it cost and where it comes from."""

    capture_id: str
    metric: bool  # False: size_m has no known unit
    size_m: list[float]  # x, y, z extent
    vertices: int
    triangles: int
    heldout_psnr: float | None  # dB, views that the optimisation never saw; None when none were held out
    heldout_psnr_foreground: float | None  # dB, within the mask
    mask_iou_heldout: float | None
    stage_seconds: dict[str, float]  # wall time of each stage, of the run that made the output
    stage_peak_memory_mb: dict[str, float]  # 10⁶ bytes
    peak_memory_mb: float | None
    warnings: list[str]  # `stage: what and what to do`
    config: dict[str, dict[str, Any]]  # resolved options of each stage
    fingerprints: dict[str, str]
    versions: dict[str, str]  # of scan2twin and of the libraries that shape results


def run(inputs: StageInputs, outputs: Path, config: PublishConfig, progress: Progress) -> StageResult:
    """Check the exported model, copy its files and write report.json.

    Raises:
        ReconstructionError: the model is empty, not finite, of an absurd size, or not what model.json says.

    """
    started = time.monotonic()
    exported = inputs["export"]
    files = sorted(path for path in exported.iterdir() if path.is_file())
    progress.start("check and copy", len(files) + 1)
    info = ModelInfo.read(exported / "model.json")
    mesh, _ = read_glb(exported / "model.glb")
    check_model(mesh, info)
    progress.advance()
    for path in files:
        shutil.copyfile(path, outputs / path.name)
        progress.advance()
    report = make_report(info, inputs.manifests)
    report.stage_seconds["publish"] = round(time.monotonic() - started, 3)
    report.write(outputs / "report.json")
    metrics = report.model_dump(include={"heldout_psnr", "heldout_psnr_foreground", "mask_iou_heldout", "triangles"})
    return StageResult(metrics)


def check_model(mesh: UvMesh, info: ModelInfo) -> None:
    """Refuse a mesh that no one could use, or that is not the one `info` describes.

    Raises:
        ReconstructionError: with every fault found.

    """
    if len(mesh.faces) == 0 or len(mesh.vertices) == 0:
        raise ReconstructionError("model.glb: the mesh is empty; look at the masks, they may be empty or contradict")
    faults = []
    size = np.ptp(mesh.vertices, axis=0)
    if not (np.isfinite(mesh.vertices).all() and np.isfinite(mesh.uv).all()):
        faults.append("positions or texture coordinates are not finite; run reconstruct again with another seed")
    elif not np.allclose(size, info.size_m, rtol=1e-4, atol=1e-6):
        faults.append(f"its size {size.tolist()} is not the {info.size_m} of model.json; run export again")
    elif info.metric and not PLAUSIBLE_M[0] <= size.max() <= PLAUSIBLE_M[1]:
        faults.append(
            f"its longest side is {size.max():.4g} m, which no scanned object has; look at the capture's poses and box"
        )
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        faults.append("triangles point at vertices that do not exist; run export again")
    if (len(mesh.faces), len(mesh.vertices)) != (info.triangles, info.vertices):
        faults.append("its counts are not those of model.json; run export again")
    if faults:
        raise ReconstructionError("\n".join(f"model.glb: {fault}" for fault in faults))


def make_report(info: ModelInfo, manifests: Manifests) -> Report:
    """Gather the report from the model's own figures and the manifests of the stages before."""
    measured = manifests.get("export", {}).get("metrics", {})  # of the textured mesh itself
    memory = {name: manifest["peak_memory_mb"] for name, manifest in manifests.items()}
    versions: dict[str, str] = {}
    for manifest in manifests.values():
        versions |= {**manifest["libraries"], "scan2twin": manifest["code_version"]}
    return Report(
        capture_id=info.capture_id,
        metric=info.metric,
        size_m=info.size_m,
        vertices=info.vertices,
        triangles=info.triangles,
        heldout_psnr=measured.get("heldout_psnr"),
        heldout_psnr_foreground=measured.get("heldout_psnr_foreground"),
        mask_iou_heldout=measured.get("mask_iou_heldout"),
        stage_seconds={name: manifest["durations"]["total_s"] for name, manifest in manifests.items()},
        stage_peak_memory_mb=memory,
        peak_memory_mb=max(memory.values(), default=None),
        warnings=[f"{name}: {text}" for name, manifest in manifests.items() for text in manifest["warnings"]],
        config={name: dict(manifest["config"]) for name, manifest in manifests.items()},
        fingerprints={name: manifest["fingerprint"] for name, manifest in manifests.items()},
        versions=versions,
    )

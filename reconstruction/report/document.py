"""`report.json`: how good the model is, what it cost and where it comes from."""

from collections.abc import Mapping
from typing import Any

from reconstruction.model import ModelInfo
from scan2twin.frames import Document

Manifests = Mapping[str, Mapping[str, Any]]


class Report(Document):
    """`report.json`."""

    capture_id: str
    metric: bool  # False: size_m has no known unit
    size_m: list[float]  # x, y, z extent
    size_uncertainty_m: float | None  # expanded (k = 2, about 95 %), of each extent; see reconstruction.report.size
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


def make_report(info: ModelInfo, manifests: Manifests, size_uncertainty_m: float | None = None) -> Report:
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
        size_uncertainty_m=size_uncertainty_m,
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

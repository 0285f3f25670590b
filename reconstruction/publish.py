"""The publish stage: the last look at the model, and the report that goes with it.

Everything that leaves the pipeline is opened again here as a stranger would open it, so that a model that cannot
be used is never published.
"""

import shutil
import time
from pathlib import Path

import numpy as np

from reconstruction.atlas import UvMesh
from reconstruction.gltf import read_glb
from reconstruction.model import ModelInfo
from reconstruction.report.document import make_report
from reconstruction.report.page import render_page
from reconstruction.report.size import size_uncertainty
from scan2twin.config import PublishConfig
from scan2twin.errors import ReconstructionError
from scan2twin.frames import Dataset
from scan2twin.progress import Progress
from scan2twin.stages import StageInputs, StageResult

PLAUSIBLE_M = (0.001, 100.0)  # longest side of a scanned object, metres: beyond, the tracker's scale is broken


def run(inputs: StageInputs, outputs: Path, config: PublishConfig, progress: Progress) -> StageResult:
    """Check the exported model, copy its files and write report.json and report.html.

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
    report = make_report(info, inputs.manifests, _size_uncertainty(info, inputs))
    report.stage_seconds["publish"] = round(time.monotonic() - started, 3)
    report.write(outputs / "report.json")
    (outputs / "report.html").write_text(render_page(report, info, outputs, inputs.folders), encoding="utf-8")
    metrics = report.model_dump(include={"heldout_psnr", "heldout_psnr_foreground", "mask_iou_heldout", "triangles"})
    return StageResult(metrics)


def _size_uncertainty(info: ModelInfo, inputs: StageInputs) -> float:
    dataset = Dataset.read(inputs["mask"] / "dataset.json")
    optimised_side = min(inputs.manifests["reconstruct"]["config"]["resolution"], dataset.resolution)
    return size_uncertainty(dataset, max(info.size_m), optimised_side, inputs.manifests["refine_poses"]["metrics"])


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

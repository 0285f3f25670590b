"""How good preprocessing is: poses and masks against a truth, and what their errors cost the model.

A truth folder, beside the capture's own, holds `poses.json` (`frames`: `i` and `camera_to_anchor`, the 4×4 pose of the
sensor in the reference frame, OpenGL axes, metres; `anchor_to_mesh_world`, 4×4, from there to the mesh's frame),
`masks/NNNNNN.png` (255 = object, pixels of the raw image) and `mesh.obj` (metres, +Y up, on its lowest point).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from preprocessing.anchors import relative_poses
from preprocessing.benchmark_masks import MaskFigures, measure_masks, true_mask
from preprocessing.bundle_adjustment import match_frames
from preprocessing.compensate_poses import pose_matrices
from preprocessing.condition import upright_pose
from preprocessing.frame_checks import camera_distance, check_frames, pose_differences
from preprocessing.images import read_mask, write_png
from preprocessing.matching import choose_pairs
from preprocessing.refine_poses import refine
from scan2twin.benchmark import compare_meshes
from scan2twin.capture.models import Pose
from scan2twin.capture.reader import read_capture
from scan2twin.config import MaskConfig, PipelineConfig
from scan2twin.errors import InputError, Scan2TwinError
from scan2twin.frames import ConditionedFrame, ConditionedFrames, Dataset, PosedFrames
from scan2twin.progress import Progress
from scan2twin.stages import CAPTURE, StageInputs, stage_named

Array = NDArray[np.float64]

POSE_STAGES = ("validate", "condition", "compensate_poses", "refine_poses")
NOISE = ((0.5, 0.25), (1.0, 0.5), (2.0, 1.0), (3.0, 1.5))  # % of the camera distance, degrees: rms of vector lengths
SEED = 0


@dataclass(frozen=True)
class PoseFigures:
    """Errors of poses after rigid alignment without scale, positions as % of the median camera distance."""

    poses: str
    frames: int
    dropped: Sequence[int]  # frames of the capture that this or an earlier stage left out
    position_median: float
    position_worst: float
    degrees_median: float
    degrees_worst: float
    scale: float  # size of the camera path / the truth's


@dataclass(frozen=True)
class EffectFigures:
    """What poses and masks of one kind give in the stage reconstruct; None where it failed, `fault` says why."""

    poses: str
    masks: str
    views: int
    heldout_psnr_foreground: float | None  # against the photos, with the poses and masks in question
    chamfer_percent: float | None  # of the truth's diagonal, after rigid alignment
    size_error_percent: float | None
    fault: str = ""


@dataclass(frozen=True)
class Truth:
    """The truth of one capture; see the module's text."""

    folder: Path

    @cached_property
    def document(self) -> Mapping[str, object]:
        """The content of poses.json."""
        document: Mapping[str, object] = json.loads((self.folder / "poses.json").read_text())
        return document

    def poses(self, frames: Sequence[ConditionedFrame]) -> Array:
        """Return the true camera_to_reference (N × 4 × 4) of conditioned frames, whose images were turned upright."""
        known = {frame["i"]: np.array(frame["camera_to_anchor"]) for frame in self.document["frames"]}  # type: ignore[attr-defined]
        poses = np.array([known[frame.index] for frame in frames])
        for pose, frame in zip(poses, frames, strict=True):
            q = Rotation.from_matrix(pose[:3, :3]).as_quat().tolist()
            turned = upright_pose(Pose(p=[0.0] * 3, q=q), frame.source.rotation_quarters)
            pose[:3, :3] = Rotation.from_quat(turned.q).as_matrix()
        return poses

    def mesh(self) -> trimesh.Trimesh:
        """Return the true mesh in its own frame."""
        return trimesh.load_mesh(self.folder / "mesh.obj", process=False)


class Benchmark:
    """One capture, taken through the pose stages once; every table is measured on what they left in `work`."""

    def __init__(self, source: Path, work: Path, config: PipelineConfig, progress: Progress) -> None:
        """Run the stages up to refine_poses.

        `source` is a capture folder, or a folder with `capture/` and `truth/`.

        Raises:
            InputError: there is no capture, or the truth lacks a file.

        """
        capture = source / "capture" if (source / "capture").is_dir() else source
        truth = source / "truth"
        if truth.is_dir() and (missing := [n for n in ("mesh.obj", "poses.json", "masks") if not (truth / n).exists()]):
            raise InputError(f"benchmark: {truth}: no {', '.join(missing)}; see docs/preprocessing-poses.md")
        self.truth = Truth(truth) if truth.is_dir() else None
        self._work, self._config, self._progress = work, config, progress
        folders, manifests = {CAPTURE: capture}, dict[str, Mapping[str, object]]()
        self.warnings: list[str] = []
        for name in POSE_STAGES:
            folders[name] = work / name
            folders[name].mkdir(parents=True)
            inputs = StageInputs(dict(folders), dict(manifests))
            result = stage_named(name).load()(inputs, folders[name], config.section(name), progress)
            manifests[name] = {"metrics": dict(result.metrics)}
            self.warnings += [f"{name}: {warning}" for warning in result.warnings]
        self._inputs = StageInputs(folders, manifests)
        recorded = read_capture(capture)
        self.name = recorded.document.capture_id
        self._numbers = [frame.i for frame in recorded.frames]
        self._conditioned = ConditionedFrames.read(folders["condition"] / "cameras.json")

    def pose_table(self) -> list[PoseFigures]:
        """Return the errors of the raw, the compensated and the refined poses; empty without truth."""
        if self.truth is None:
            return []
        return [self._compare(name, posed, self._truth_of(posed)) for name, posed in self._pose_variants().items()][:-1]

    def noise_table(self) -> list[PoseFigures]:
        """Return the errors of the true poses, or without truth the compensated ones, with noise added and refined.

        Features are matched once, between the neighbours that the poses without noise have.
        """
        config = self._config.refine_poses
        posed = self._read_poses("compensate_poses")
        exact = self._given(posed) if self.truth is None else self._truth_of(posed)
        posed = _with_poses(posed, exact)
        folder = self._work / "matches"
        folder.mkdir()
        pairs = choose_pairs(exact[:, :3, 3] - posed.object.center, config.neighbours)
        database = match_frames(
            self._inputs["condition"], posed.frames, pairs, folder, max_features=config.max_features,
            long_side=config.feature_side,
        )  # fmt: skip
        rows = []
        for percent, degrees in NOISE:
            noisy = _with_poses(posed, _disturbed(exact, percent / 100 * camera_distance(posed), degrees))
            refinement, *_ = refine(noisy, self._inputs["condition"], database, config, self._progress)
            verdict = check_frames(noisy, refinement, config.min_points)
            kept = [row for row in range(len(exact)) if row not in verdict.faults]
            found = refinement.camera_to_reference.copy()
            found[verdict.unadjusted] = self._given(noisy)[verdict.unadjusted]
            label = f"{percent:g} %, {degrees:g}°"
            rows.append(self._compare(f"{label} added", noisy, exact))
            refined = _with_poses(noisy, found)
            refined = refined.model_copy(update={"frames": [refined.frames[row] for row in kept]})
            rows.append(self._compare(f"{label} refined", refined, exact[kept]))
        return rows

    def mask_table(self, network: str | None) -> list[MaskFigures]:
        """Return the masks' errors by back end, with and without the refiner; `network` is another ONNX network."""
        if self.truth is None:
            return []
        backends = {"u2netp": MaskConfig(backend="network")}
        if network:
            backends[Path(network).stem] = MaskConfig(backend="network", network=network)
        return [
            measure_masks(
                self.name, name, self._inputs, self.truth.folder / "masks",
                config.model_copy(update={"refine": refine_}), self._progress,
            )
            for name, config in backends.items()
            for refine_ in (False, True)
        ]  # fmt: skip

    def effect_table(self) -> Iterator[EffectFigures]:
        """Yield what raw, compensated, refined and true poses, and raw, refined and true masks give in a model."""
        if self.truth is None:
            return
        variants = self._pose_variants()
        yield from (self._effect(name, "refined", variants[name]) for name in variants)
        yield from (self._effect("refined", masks, variants["refined"]) for masks in ("raw", "true"))

    def _effect(self, poses: str, masks: str, posed: PosedFrames) -> EffectFigures:
        assert self.truth is not None
        folder = self._work / f"{poses}-{masks}"
        folders = {name: folder / name for name in ("refine_poses", "mask", "reconstruct")}
        for path in folders.values():
            path.mkdir(parents=True)
        posed.write(folders["refine_poses"] / "poses.json")
        inputs = replace(self._inputs, folders={**self._inputs.folders, **folders})
        try:
            config = self._config.mask.model_copy(update={"refine": masks != "raw"})
            stage_named("mask").load()(inputs, folders["mask"], config, self._progress)
            dataset = Dataset.read(folders["mask"] / "dataset.json")
            if masks == "true":
                self._write_true_masks(dataset, folders["mask"])
            reconstruct = stage_named("reconstruct").load()
            result = reconstruct(inputs, folders["reconstruct"], self._config.reconstruct, self._progress)
        except Scan2TwinError as error:
            return EffectFigures(poses, masks, len(posed.frames), None, None, None, str(error).splitlines()[0])
        with np.load(folders["reconstruct"] / "mesh.npz") as arrays:
            mesh = trimesh.Trimesh(arrays["vertices"], arrays["faces"], process=False)
        mesh.apply_transform(np.array(self.truth.document["anchor_to_mesh_world"]) @ dataset.unit_to_reference)
        geometry = compare_meshes(mesh, self.truth.mesh())
        return EffectFigures(
            poses, masks, len(dataset.frames), result.metrics["heldout_psnr_foreground"], geometry.chamfer_percent,
            geometry.size_error_percent,
        )  # fmt: skip

    def _write_true_masks(self, dataset: Dataset, folder: Path) -> None:
        assert self.truth is not None
        by_index = {frame.index: frame for frame in self._conditioned.frames}
        for frame in dataset.frames:
            raw = read_mask(self.truth.folder / "masks" / f"{frame.index:06d}.png")
            write_png(folder / frame.mask, true_mask(raw, by_index[frame.index], frame, dataset.resolution))

    def _pose_variants(self) -> dict[str, PosedFrames]:
        """Return the poses in the order in which they get better; `raw` ones are the tracker's, by its first anchor."""
        compensated, refined = self._read_poses("compensate_poses"), self._read_poses("refine_poses")
        by_index = {frame.index: frame for frame in self._conditioned.frames}
        frames = [by_index[frame.index] for frame in compensated.frames]
        rotation = Rotation.from_quat([frame.pose_world.q for frame in frames])
        position = np.array([frame.pose_world.p for frame in frames])
        first = next((frame.anchor for frame in frames if frame.anchor), None)
        if first is not None:
            anchor = Rotation.from_quat([first.q] * len(frames)), np.array([first.p] * len(frames))
            rotation, position = relative_poses(*anchor, rotation, position)
        return {
            "raw": _with_poses(compensated, pose_matrices(rotation, position)),
            "compensated": compensated,
            "refined": refined,
            "true": _with_poses(refined, self._truth_of(refined)),
        }

    def _truth_of(self, posed: PosedFrames) -> Array:
        assert self.truth is not None
        by_index = {frame.index: frame for frame in self._conditioned.frames}
        return self.truth.poses([by_index[frame.index] for frame in posed.frames])

    def _compare(self, name: str, posed: PosedFrames, true: Array) -> PoseFigures:
        kept = {frame.index for frame in posed.frames}
        position, degrees, scale = compare_poses(self._given(posed), true)
        distance = camera_distance(_with_poses(posed, true))
        return PoseFigures(
            name, len(kept), [number for number in self._numbers if number not in kept],
            float(np.median(position) / distance * 100), float(position.max() / distance * 100),
            float(np.median(degrees)), float(degrees.max()), scale,
        )  # fmt: skip

    def _read_poses(self, stage: str) -> PosedFrames:
        return PosedFrames.read(self._inputs[stage] / "poses.json")

    @staticmethod
    def _given(posed: PosedFrames) -> Array:
        return np.array([frame.camera_to_reference for frame in posed.frames])


def compare_poses(found: Array, true: Array) -> tuple[Array, Array, float]:
    """Return position errors (N,), rotation errors (N,) in degrees and the scale of `found`, both N × 4 × 4.

    `found` is first turned and moved onto `true` (Kabsch 1976), without scale, which is the ratio of the spreads.
    """
    centre, true_centre = found[:, :3, 3].mean(axis=0), true[:, :3, 3].mean(axis=0)
    offsets, true_offsets = found[:, :3, 3] - centre, true[:, :3, 3] - true_centre
    turn, _ = Rotation.align_vectors(true_offsets, offsets)
    aligned = found.copy()
    aligned[:, :3, 3] = turn.apply(offsets) + true_centre
    aligned[:, :3, :3] = turn.as_matrix() @ found[:, :3, :3]
    position, degrees = pose_differences(true, aligned)
    return position, degrees, float(np.linalg.norm(offsets) / np.linalg.norm(true_offsets))


def _with_poses(posed: PosedFrames, poses: Array) -> PosedFrames:
    frames = [
        frame.model_copy(update={"camera_to_reference": pose.tolist()})
        for frame, pose in zip(posed.frames, poses, strict=True)
    ]
    return posed.model_copy(update={"frames": frames})


def _disturbed(poses: Array, metres: float, degrees: float) -> Array:
    """Add normal noise, the same for every call but for its size, whose vectors have these root mean square lengths."""
    rng = np.random.default_rng(SEED)
    shift, turn = rng.normal(size=(2, len(poses), 3)) / np.sqrt(3)
    result = poses.copy()
    result[:, :3, 3] += metres * shift
    noise = Rotation.from_rotvec(np.radians(degrees) * turn)
    result[:, :3, :3] = (noise * Rotation.from_matrix(poses[:, :3, :3])).as_matrix()
    return result

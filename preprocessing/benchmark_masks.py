"""How good masks are: the mask stage run with several back ends, each of its masks against the truth's."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from preprocessing import mask
from preprocessing.condition import TargetCamera, warp_image
from preprocessing.crop import Crop, crop_image
from preprocessing.images import UInt8, read_image, read_mask
from preprocessing.masks.consensus import iou
from scan2twin.config import MaskConfig
from scan2twin.frames import ConditionedFrame, ConditionedFrames, Dataset, DatasetFrame
from scan2twin.progress import Progress
from scan2twin.stages import StageInputs

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MaskFigures:
    """Intersection over union with the truth's masks, over the views that the dataset keeps."""

    dataset: str
    backend: str
    refined: bool
    views: int
    left_out: int  # views whose mask was refused
    mean: float
    worst: float
    worst_frame: int
    below_090: Sequence[int]  # frames whose mask is bad
    named: Sequence[int]  # frames that the stage itself doubts: trusted by half or less
    trust_correlation: float | None  # Spearman's, of a view's trust and its IoU; None where all are trusted alike


def true_mask(truth: UInt8, conditioned: ConditionedFrame, frame: DatasetFrame, resolution: int) -> UInt8:
    """Return the truth (raw pixels) in the square of `frame`, `resolution`² pixels, found from its intrinsics alone."""
    target = TargetCamera(conditioned.width, conditioned.height, conditioned.intrinsics.fx)
    scale = conditioned.intrinsics.fx / frame.intrinsics.fx
    crop = Crop(
        round(conditioned.intrinsics.cx - frame.intrinsics.cx * scale),
        round(conditioned.intrinsics.cy - frame.intrinsics.cy * scale),
        round(resolution * scale),
    )
    return crop_image(warp_image(truth, conditioned.source, target), crop, resolution)


def measure_masks(
    dataset_name: str, backend: str, inputs: StageInputs, truth: Path, config: MaskConfig, progress: Progress
) -> MaskFigures:
    """Run the mask stage and compare its masks with `truth`/NNNNNN.png (raw pixels, 255 = object), one a frame.

    `inputs` are the stage's: capture, condition and refine_poses. Raises what the stage raises.
    """
    conditioned = {frame.index: frame for frame in ConditionedFrames.read(inputs["condition"] / "cameras.json").frames}
    with tempfile.TemporaryDirectory(prefix="scan2twin-") as temporary:
        outputs = Path(temporary)
        mask.run(inputs, outputs, config, progress)
        dataset = Dataset.read(outputs / "dataset.json")
        kept = [frame for frame in dataset.frames if frame.weight > 0]
        scores = np.array([
            iou(
                read_image(outputs / frame.mask),
                true_mask(
                    read_mask(truth / f"{frame.index:06d}.png"), conditioned[frame.index], frame, dataset.resolution
                ),
            )
            for frame in kept
        ])  # fmt: skip
    weights = np.array([frame.weight for frame in kept])
    numbers = [frame.index for frame in kept]
    return MaskFigures(
        dataset=dataset_name, backend=backend, refined=config.refine, views=len(kept),
        left_out=len(dataset.frames) - len(kept), mean=float(scores.mean()), worst=float(scores.min()),
        worst_frame=numbers[int(scores.argmin())],
        below_090=[number for number, score in zip(numbers, scores, strict=True) if score < 0.9],
        named=[number for number, weight in zip(numbers, weights, strict=True) if weight <= 0.5],
        trust_correlation=float(spearmanr(weights, scores).statistic) if np.ptp(weights) > 0 else None,
    )  # fmt: skip

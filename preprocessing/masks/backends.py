"""What finds the object in a photo, behind one interface: networks in ONNX form, and GrabCut without any."""

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime

from preprocessing.images import UInt8
from scan2twin.errors import ConfigError, InputError
from scan2twin.weights import digest, find_weights

Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

GRABCUT_ITERATIONS = 5  # Rother et al. 2004, section 3.2: converges within a few


class MaskBackend(Protocol):
    """Finds the object in one photo; called from several threads at once."""

    def __call__(self, rgb: UInt8, region: Bool) -> Float32:
        """Return (H, W) in 0..1, how sure each pixel of the (H, W, 3) sRGB photo is of the object.

        `region` (H, W) is where the object box projects to.
        """


@dataclass(frozen=True)
class Normalisation:
    """How a network wants its pixels, (value / 255 or / the photo's maximum - mean) / deviation, and what it gives."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    side: int  # of its input, where the file leaves that open
    by_maximum: bool = False
    gives_logits: bool = False  # instead of probabilities

    def tensor(self, rgb: UInt8) -> Float32:
        """Return 1×3×H×W float32 of an (H, W, 3) photo."""
        scaled = rgb / (max(int(rgb.max()), 1) if self.by_maximum else 255)
        normalised = (scaled - np.array(self.mean)) / np.array(self.deviation)
        return np.asarray(normalised.transpose(2, 0, 1)[None], np.float32)


_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's photos
IMAGENET = Normalisation(_MEAN, _DEVIATION, 1024)
BIREFNET = Normalisation(_MEAN, _DEVIATION, 1024, gives_logits=True)  # Zheng et al. 2024, release code and ONNX files
U2NET = Normalisation(_MEAN, _DEVIATION, 320, by_maximum=True)  # Qin et al. 2020, release code
ISNET = Normalisation((128 / 255,) * 3, (256 / 255,) * 3, 1024)  # Qin et al. 2022, release code: (x - 128) / 256
NORMALISATIONS = {"imagenet": IMAGENET, "birefnet": BIREFNET, "u2net": U2NET, "isnet": ISNET}


class OnnxBackend:
    """A salient-object network: 1×3×S×S in, first output 1×1×S×S, stretched to 0..1."""

    def __init__(self, path: Path, normalisation: Normalisation = U2NET) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the frames are the parallelism
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            batch, channels, height, width = self._session.get_inputs()[0].shape
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise InputError(f"{path}: is not an ONNX network that onnxruntime can load ({error})") from error
        fixed = isinstance(height, int) and isinstance(width, int)
        if channels != 3 or (fixed and height != width):
            raise InputError(f"{path}: takes {batch}×{channels}×{height}×{width}, expected 1×3×S×S")
        self._name, self._side = self._session.get_inputs()[0].name, height if fixed else normalisation.side
        self._output = self._session.get_outputs()[0].name
        self._normalisation = normalisation

    def __call__(self, rgb: UInt8, region: Bool) -> Float32:
        """See `MaskBackend`; the network sees the whole photo."""
        height, width = rgb.shape[:2]
        resized = cv2.resize(rgb, (self._side, self._side), interpolation=cv2.INTER_AREA)
        saliency = self._session.run([self._output], {self._name: self._normalisation.tensor(resized)})[0][0, 0]
        if self._normalisation.gives_logits:
            saliency = 1 / (1 + np.exp(-saliency))
        low, high = float(saliency.min()), float(saliency.max())
        stretched = (saliency - low) / max(high - low, 1e-8)
        full: Float32 = cv2.resize(stretched, (width, height), interpolation=cv2.INTER_LINEAR)
        return full


def u2netp() -> OnnxBackend:
    """Return the small U²-Net that is shipped with the package."""
    with as_file(files("preprocessing") / "weights" / "u2netp.onnx") as path:
        return OnnxBackend(path)


def network(name: str, sha256: str | None, normalisation: str) -> OnnxBackend:
    """Return the ONNX network called `name`: a path, or a file in the weights folder.

    Raises:
        ConfigError: there is no such file, or its SHA-256 is not `sha256`.
        InputError: the file is not a network of the kind `OnnxBackend` runs.

    """
    path = find_weights(name, "mask.network")
    if sha256 and (found := digest(path, "sha256")) != sha256:
        raise ConfigError(f"mask.network_sha256: {path} has SHA-256 {found}, not {sha256}; fetch the file again")
    return OnnxBackend(path, NORMALISATIONS[normalisation])


def grabcut(rgb: UInt8, region: Bool) -> Float32:
    """Find the object by colour alone: what in `region` looks unlike what is outside (Rother et al. 2004).

    The last resort where no network can be had: it needs a background of other colours than the object's.
    """
    labels = np.where(region, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    if region.any() and not region.all():
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(0)  # its k-means draws at random; the same photo shall give the same mask
        cv2.grabCut(
            cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), labels, None, *models, GRABCUT_ITERATIONS, cv2.GC_INIT_WITH_MASK
        )
    return np.asarray(labels == cv2.GC_PR_FGD, np.float32)

"""Networks that find the object in a photo, behind one interface."""

from importlib.resources import as_file, files
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime

from preprocessing.images import UInt8
from scan2twin.errors import InputError

Float32 = npt.NDArray[np.float32]

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


class MaskBackend(Protocol):
    """Finds the object in one photo; called from several threads at once."""

    def __call__(self, rgb: UInt8) -> Float32:
        """Return (H, W) in 0..1, how sure each pixel of the (H, W, 3) sRGB photo is of the object."""


def imagenet_tensor(rgb: UInt8) -> Float32:
    """Scale by the photo's maximum, then by ImageNet's mean and deviation (Qin et al. 2020, U²-Net, release code)."""
    scaled = rgb / max(int(rgb.max()), 1)
    return ((scaled - IMAGENET_MEAN) / IMAGENET_STD).astype(np.float32)


class OnnxBackend:
    """A salient-object network: 1×3×S×S in, first output 1×1×S×S, stretched to 0..1."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the frames are the parallelism
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise InputError(f"{path}: is not an ONNX network that onnxruntime can load ({error})") from error
        self._input = self._session.get_inputs()[0]
        self._side = int(self._input.shape[2])

    def __call__(self, rgb: UInt8) -> Float32:
        """See `MaskBackend`."""
        height, width = rgb.shape[:2]
        small = cv2.resize(rgb, (self._side, self._side), interpolation=cv2.INTER_AREA)
        tensor = imagenet_tensor(small).transpose(2, 0, 1)[None]
        saliency = self._session.run(None, {self._input.name: tensor})[0][0, 0]
        low, high = float(saliency.min()), float(saliency.max())
        stretched = (saliency - low) / max(high - low, 1e-8)
        full: Float32 = cv2.resize(stretched, (width, height), interpolation=cv2.INTER_LINEAR)
        return full


def u2netp() -> OnnxBackend:
    """Return the small U²-Net that is shipped with the package."""
    with as_file(files("preprocessing") / "weights" / "u2netp.onnx") as path:
        return OnnxBackend(path)

"""CarveKit's networks (Tracer-B7 or U²-Net, then FBA matting) as a mask back end.

The library is optional and imported when the first mask is asked for. It would download its weights by itself, into
the home folder; here they are taken from the weights folder, checked against the SHA-512 that the library states,
and never downloaded.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from preprocessing.images import UInt8
from scan2twin.errors import ConfigError
from scan2twin.weights import find_weights

Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

CHECKPOINTS = {"tracer_b7": "tracer_b7.pth", "u2net": "u2net.pth"}
MATTING_CHECKPOINT = "fba_matting.pth"
TRACER_SIDE = 640  # pixels; as CarveKit's HiInterface sets it for Tracer-B7
U2NET_SIDE = 320


class CarveKitBackend:
    """CarveKit's segmentation of a photo and, with `matting`, its soft outline. See `backends.MaskBackend`.

    Raises:
        ConfigError: the library is not installed; weights are missing, or are not those that the library names.

    """

    def __init__(self, segmentation: Literal["tracer_b7", "u2net"], matting: bool) -> None:
        with importable_carvekit():
            import torch
            from carvekit.ml.wrap.fba_matting import FBAMatting
            from carvekit.ml.wrap.tracer_b7 import TracerUniversalB7
            from carvekit.ml.wrap.u2net import U2NET
            from carvekit.pipelines.postprocessing import MattingMethod
            from carvekit.trimap.generator import TrimapGenerator
        # All are found before the first is loaded, which takes seconds.
        path = _checkpoint(CHECKPOINTS[segmentation])
        matting_path = _checkpoint(MATTING_CHECKPOINT) if matting else None
        device = "cuda" if torch.cuda.is_available() else "cpu"

        def load(network: Any, path: Path) -> Any:
            network.load_state_dict(torch.load(path, map_location=device, weights_only=True))
            return network

        self._segmentation = (
            TracerUniversalB7(device=device, input_image_size=TRACER_SIDE, batch_size=1, model_path=path)
            if segmentation == "tracer_b7"
            else load(U2NET(device=device, input_image_size=U2NET_SIDE, batch_size=1, load_pretrained=False), path)
        )
        self._matting = None
        if matting_path:
            # With a batch size of 1 images keep their shape; a larger batch would return its first image only.
            fba = load(FBAMatting(device=device, batch_size=1, load_pretrained=False), matting_path)
            self._matting = MattingMethod(fba, TrimapGenerator(), device=device)
        self._one_at_a_time = Lock()  # torch spreads one image over all cores by itself

    def __call__(self, rgb: UInt8, region: Bool) -> Float32:
        """See `MaskBackend`; the networks see the whole photo."""
        photo = Image.fromarray(rgb)
        with self._one_at_a_time:
            (found,) = self._segmentation([photo])
            if self._matting:
                (cut_out,) = self._matting(images=[photo], masks=[found])
                found = cut_out.getchannel("A")
        return np.asarray(found, np.float32) / np.float32(255)


def _checkpoint(name: str) -> Path:
    """Return the checkpoint called `name`; it is the one that the library states, or ConfigError is raised."""
    from carvekit.utils.download_models import MODELS_CHECKSUMS, sha512_checksum_calc

    path = find_weights(name, "mask.backend: carvekit")
    found = sha512_checksum_calc(path)
    if found != MODELS_CHECKSUMS[name]:
        raise ConfigError(
            f"mask.backend: carvekit: {path} has SHA-512 {found}, but CarveKit names {MODELS_CHECKSUMS[name]}; "
            "fetch it again"
        )
    return path


@contextmanager
def importable_carvekit() -> Iterator[None]:
    """Let CarveKit be imported on any machine: it makes a folder in the home folder, and wants a whole torchvision."""
    home = os.environ.get("HOME")
    with tempfile.TemporaryDirectory(prefix="scan2twin-") as elsewhere:
        os.environ["HOME"] = elsewhere  # the real one may be read-only, as in a pod
        try:
            _import_torchvision()
            yield
        except ImportError as error:
            raise ConfigError(
                f"mask.backend: carvekit cannot be imported ({error}); install it: pip install 'scan2twin[carvekit]'"
            ) from error
        finally:
            if home is None:
                del os.environ["HOME"]
            else:
                os.environ["HOME"] = home


def _import_torchvision() -> None:
    """Import torchvision, also where its kernels do not load: a build for CUDA beside a torch for CPUs.

    Only its Python transforms are used here. Its import stops at registering shapes for operators that the kernels
    would have declared; so they are declared.
    """
    import torch

    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        import torchvision  # noqa: F401

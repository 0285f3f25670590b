"""CarveKit's real networks and its real pipeline, with weights drawn at random: the true ones are not ours to ship."""

import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from preprocessing.images import UInt8
from preprocessing.masks.carvekit_masks import CarveKitBackend, importable_carvekit
from preprocessing.masks.masker import backend_of
from scan2twin.config import MaskConfig
from scan2twin.errors import ConfigError
from scan2twin.weights import WEIGHTS_VARIABLE

with importable_carvekit():
    from carvekit.api.interface import Interface
    from carvekit.ml.wrap.fba_matting import FBAMatting
    from carvekit.ml.wrap.tracer_b7 import TracerUniversalB7
    from carvekit.ml.wrap.u2net import U2NET
    from carvekit.pipelines.postprocessing import MattingMethod
    from carvekit.trimap.generator import TrimapGenerator
    from carvekit.utils import download_models

HUB_FOLDERS = {"u2net.pth": "u2net-universal", "tracer_b7.pth": "tracer_b7", "fba_matting.pth": "fba"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints in the library's format and layout, made by its own classes."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    networks = {
        "u2net.pth": U2NET(load_pretrained=False),
        "tracer_b7.pth": TracerUniversalB7(load_pretrained=False, model_path="none"),
        "fba_matting.pth": FBAMatting(load_pretrained=False),
    }
    for name, network in networks.items():
        if name == "tracer_b7.pth":
            for weights in network.parameters():
                if weights.ndim == 4:
                    torch.nn.init.kaiming_normal_(weights)  # or the signal dies away in so many random layers
        state = network.state_dict()
        if name == "fba_matting.pth":
            last = [key for key in state if key.startswith("decoder.conv_up4") and key.endswith("bias")][-1]
            state[last][0] += 0.6  # alpha, which random weights would leave at 0
        (folder / HUB_FOLDERS[name]).mkdir()
        torch.save(state, folder / HUB_FOLDERS[name] / name)
    return folder


@pytest.fixture
def weights(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as a weights folder of ours, named by the library's table of checksums."""
    for name, folder in HUB_FOLDERS.items():
        os.link(checkpoints / folder / name, tmp_path / name)
        checksum = download_models.sha512_checksum_calc(tmp_path / name)
        monkeypatch.setitem(download_models.MODELS_CHECKSUMS, name, checksum)
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    monkeypatch.setattr(download_models.downloader, "cache_dir", checkpoints)
    monkeypatch.setattr(download_models.requests, "get", lambda *_, **__: pytest.fail("a stage never downloads"))
    return tmp_path


@pytest.fixture(scope="module")
def photo() -> UInt8:
    image = np.full((120, 120, 3), 40, np.uint8)
    cv2.circle(image, (66, 56), 30, (220, 170, 60), -1)
    return image


def test_u2net_and_matting_give_what_the_library_gives(weights: Path, photo: UInt8) -> None:
    """Against the library's own interface, which finds and loads its checkpoints by itself."""
    matting = MattingMethod(FBAMatting(batch_size=1), TrimapGenerator())
    (expected,) = Interface(U2NET(), post_pipe=matting)([Image.fromarray(photo)])
    backend = backend_of(MaskConfig(backend="carvekit", carvekit_network="u2net"))
    found = backend(photo, np.ones(photo.shape[:2], bool))
    assert found.shape == photo.shape[:2]
    assert found.dtype == np.float32
    assert np.ptp(found) > 0.1
    assert np.array_equal(np.rint(255 * found), np.asarray(expected.getchannel("A")))


def test_tracer_gives_what_the_library_gives(weights: Path, photo: UInt8) -> None:
    (expected,) = TracerUniversalB7(batch_size=1)([Image.fromarray(photo)])
    backend = backend_of(MaskConfig(backend="carvekit", carvekit_matting=False))
    found = backend(photo, np.ones(photo.shape[:2], bool))
    assert np.ptp(found) > 0.1
    assert np.array_equal(np.rint(255 * found), np.asarray(expected))


def test_missing_weights_are_named_with_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match=r"carvekit: tracer_b7\.pth: no such file, .*weights fetch") as error:
        CarveKitBackend("tracer_b7", matting=True)
    assert str(tmp_path) in str(error.value)


def test_other_weights_than_the_library_names_are_refused_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    (tmp_path / "u2net.pth").write_bytes(b"something else")
    with pytest.raises(ConfigError, match=r"u2net\.pth has SHA-512 [0-9a-f]{128}, but CarveKit names 16f8125e"):
        CarveKitBackend("u2net", matting=False)
    assert (tmp_path / "u2net.pth").read_bytes() == b"something else"  # the library itself would delete it


def test_without_the_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "carvekit.ml.wrap.u2net", None)  # as if it were not installed
    home = os.environ.get("HOME")
    with pytest.raises(ConfigError, match=r"cannot be imported .*pip install 'scan2twin\[carvekit\]'"):
        CarveKitBackend("u2net", matting=False)
    assert os.environ.get("HOME") == home

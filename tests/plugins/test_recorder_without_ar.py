"""The recorder in a real browser without AR: plain photos, what makes it installable and readable, and faults."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser_scripts import needs_browser, script
from ingest_server import Server
from PIL import Image

from scan2twin.capture.reader import check_bundle, read_capture
from scan2twin.store.captures import download_capture, find_capture

pytestmark = [needs_browser, pytest.mark.timeout(1200)]
PARALLEL = 3  # files under way at once


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight photos as phones write them: the pixels lie on their side, and EXIF says so."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: the top is on the right
    for i in range(8):
        pixels = rng.integers(60, 255, (240, 320, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"IMG_{i}.jpg", exif=exif)
    return folder


def test_plain_photos_and_what_everyone_needs(server: Server, photos: Path, tmp_path: Path) -> None:
    shots = tmp_path / "shots"
    shots.mkdir()
    _, pairing = server.call("POST", "/pairings", {}, user="ann")
    seen = script("plain", pairing["link"], photos, shots)
    if kept := os.environ.get("SCAN2TWIN_TEST_SCREENSHOTS"):
        shutil.copytree(shots, kept, dirs_exist_ok=True)
    assert {name: found for name, found in seen["violations"].items() if found} == {}
    assert seen["errors"] == []
    install = seen["install"]
    assert install["secure"]
    assert install["viewport"]
    assert (install["display"], install["start_url"]) == ("standalone", "./")
    assert install["name"]
    assert install["short_name"]
    sizes = {f"{icon['width']}x{icon['height']}" for icon in install["icons"] if icon["sizes"] != "any"}
    assert {"192x192", "512x512"} <= sizes
    assert any("maskable" in icon["purpose"] for icon in install["icons"])

    ((capture_id, _),) = server.started
    download_capture(server.store, find_capture(server.store, capture_id), tmp_path / "capture")
    assert check_bundle(tmp_path / "capture") == []
    capture = read_capture(tmp_path / "capture")
    assert capture.is_plain_photos
    assert (capture.document.device.tracker, capture.document.scale.metric) == ("none", False)
    assert len(capture.frames) == seen["photos"]
    assert [(frame.width, frame.height) for frame in capture.frames[2:]] == [(240, 320)] * 8  # upright


def test_nothing_is_lost_and_nothing_is_sent_twice(server: Server, photos: Path) -> None:
    seen = script("faults", server.url, photos)
    print(json.dumps(seen))
    for name in ("networkCut", "tabClosed", "serverErrors", "pairingEnded"):
        assert seen[name]["files"] == seen["files"], name
        # What was under way when it was cut may have arrived without the phone knowing.
        assert seen[name]["twice"] <= PARALLEL, name
    assert seen["pairingEnded"]["before"] < seen["files"]
    assert seen["twoAtOnce"] == [{"files": seen["files"], "twice": 0}] * 2
    assert len(server.started) == 6
    assert len({capture_id for capture_id, _ in server.started}) == 6

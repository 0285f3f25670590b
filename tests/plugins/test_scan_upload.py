"""Another tool's scan sent as one file, and the run's first stage that makes a capture of it."""

import base64
import io
import os
import re
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from browser import in_chromium, needs_chromium
from ingest_server import KEY, Server, put
from PIL import Image

from plugins.tokens import verify
from scan2twin.capture.reader import read_capture
from scan2twin.config import PipelineConfig
from scan2twin.errors import CaptureError, MissingArtifactError
from scan2twin.progress import LogProgress
from scan2twin.retention import find_removals
from scan2twin.runner import run_stage
from scan2twin.store.captures import download_capture, find_capture
from scan2twin.store.sources import MAX_SOURCE_BYTES, SOURCES, source_key


def scan(frames: int = 12, transforms: str | None = None) -> bytes:
    """A zip of a nerfstudio scan."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        entries = []
        for k in range(frames):
            pixels = io.BytesIO()
            noise = np.random.default_rng(k).integers(40, 230, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(pixels, "JPEG")
            archive.writestr(f"scan/images/{k}.jpg", pixels.getvalue())
            angle = 2 * np.pi * k / frames
            c, s = np.cos(angle), np.sin(angle)
            matrix = [[c, 0, s, 2 * s], [0, 1, 0, 0], [-s, 0, c, 2 * c], [0, 0, 0, 1]]
            entries.append({"file_path": f"images/{k}.jpg", "transform_matrix": np.array(matrix).tolist()})
        document = str({"fl_x": 70.0, "w": 64, "h": 48, "frames": entries}).replace("'", '"')
        archive.writestr("scan/transforms.json", document if transforms is None else transforms)
    return data.getvalue()


def announced(server: Server) -> tuple[str, str]:
    """Pair and announce a capture; return the token and the capture's id."""
    token, id_ = server.pair(), f"scan-{uuid4().hex[:10]}"
    body = {"capture_id": id_, "name": "My scan", "recorded_at": datetime.now(UTC).isoformat()}
    assert server.call("POST", "/captures", body, token=token)[0] == 201
    return token, id_


def sent(server: Server, data: bytes, name: str = "My scan.zip", **order: Any) -> tuple[str, str]:
    token, id_ = announced(server)
    file = {"name": name, "size": len(data)}
    status, upload = server.call("POST", f"/captures/{id_}/source", file, token=token)
    assert status == 200, upload
    assert put(upload, data) == 200
    started = (200, {"run_id": f"upload-{id_}", "damaged": []})
    assert server.call("POST", f"/captures/{id_}/import", file | order, token=token) == started
    return token, id_


def validate(server: Server, id_: str) -> None:
    run_stage(server.store, id_, "validate", PipelineConfig(), LogProgress())


def objects(server: Server, id_: str) -> list[str]:
    return [stored.key for stored in server.store.list_objects(f"{SOURCES}/{id_}")]


def test_a_scan_becomes_a_capture_in_the_run_s_first_stage(server: Server, tmp_path: Path) -> None:
    token, id_ = sent(server, scan(), metres_per_unit=0.5)
    assert server.started == [(id_, "ann")]
    pairing = server.call("GET", f"/pairings/{pairing_of(token)}", user="ann")[1]
    assert pairing == {"state": "complete", "capture_id": id_}
    with pytest.raises(MissingArtifactError):
        find_capture(server.store, id_)
    validate(server, id_)
    download_capture(server.store, find_capture(server.store, id_), tmp_path / "capture")
    capture = read_capture(tmp_path / "capture")
    assert len(capture.frames) == 12
    assert capture.document.scale.metric
    np.testing.assert_allclose(np.linalg.norm([frame.pose_world.p for frame in capture.frames], axis=1), 1.0)
    assert capture.document.recorded_at.date() == datetime.now(UTC).date()
    assert objects(server, id_) == []
    validate(server, id_)  # again: the capture is there
    file = {"name": "My scan.zip", "size": len(scan())}
    assert server.call("POST", f"/captures/{id_}/import", file, token=token)[1]["run_id"] == f"upload-{id_}"
    assert server.call("POST", f"/captures/{id_}/source", file, token=token)[0] == 409


def pairing_of(token: str) -> str:
    return verify(token, KEY).id


def test_a_run_that_was_killed_while_it_imported_goes_on(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    _, id_ = sent(server, scan())
    put_bytes = type(server.store).put_bytes

    def killed(store: Any, key: str, data: bytes, **options: Any) -> bool:
        if key.endswith("/capture.json"):
            raise KeyboardInterrupt
        return put_bytes(store, key, data, **options)

    with monkeypatch.context() as patched:
        patched.setattr(type(server.store), "put_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            validate(server, id_)
    validate(server, id_)
    assert objects(server, id_) == []


@pytest.mark.parametrize(
    ("data", "name", "said"),
    [
        (scan()[:-300], "a.zip", "not a (scan that is known|whole zip)"),
        (scan(transforms="[]"), "a.zip", r"transforms\.json: document"),
        (
            scan(transforms='{"frames": [{"file_path": "../../x", "transform_matrix": []}]}'),
            "a.zip",
            "outside the scan",
        ),
        (b"no video", "walk.MP4", "not a video"),
    ],
)
def test_what_is_no_scan_is_refused_and_leaves_no_capture(server: Server, data: bytes, name: str, said: str) -> None:
    _, id_ = sent(server, data, name)
    for _ in range(2):
        with pytest.raises(CaptureError, match=said):
            validate(server, id_)
    with pytest.raises(MissingArtifactError):
        find_capture(server.store, id_)


def test_a_capture_of_ours_is_not_taken_for_photos(server: Server, make_capture: Any) -> None:
    data = io.BytesIO()
    folder = make_capture()
    with zipfile.ZipFile(data, "w") as archive:
        for path in folder.rglob("*.*"):
            archive.write(path, path.relative_to(folder))
    _, id_ = sent(server, data.getvalue())
    with pytest.raises(CaptureError, match="is a capture already"):
        validate(server, id_)


def test_only_the_announced_file_is_taken(server: Server) -> None:
    token, id_ = announced(server)
    for file in (
        {"name": "a.exe", "size": 3},
        {"name": "a.zip", "size": MAX_SOURCE_BYTES + 1},
        {"name": "a.zip", "size": 0},
    ):
        assert server.call("POST", f"/captures/{id_}/source", file, token=token)[0] == 422
    file = {"name": "../../a.zip", "size": 3}
    upload = server.call("POST", f"/captures/{id_}/source", file, token=token)[1]
    assert f"/{SOURCES}/{id_}/scan.zip?" in upload["url"]
    assert put(upload, b"four") == 403
    nothing = (200, {"run_id": None, "damaged": ["../../a.zip"]})
    assert server.call("POST", f"/captures/{id_}/import", file, token=token) == nothing
    assert put(upload, b"abc") == 200
    assert server.call("POST", f"/captures/{id_}/import", file | {"size": 4}, token=token)[1]["run_id"] is None
    assert objects(server, id_) == []  # it can be sent again
    assert server.started == []
    other = announced(server)[0]
    assert server.call("POST", f"/captures/{id_}/source", file, token=other)[0] == 403
    assert server.call("POST", f"/captures/{id_}/import", file, token="")[0] == 401


def test_images_and_a_scan_are_not_mixed(server: Server) -> None:
    token, id_ = announced(server)
    image = b"\xff\xd8\xff"
    server.send(token, id_, {"images/000000.jpg": image})
    status, answer = server.call("POST", f"/captures/{id_}/source", {"name": "a.zip", "size": 3}, token=token)
    assert (status, "images of it were sent already" in answer["detail"]) == (409, True)


def test_what_nobody_imports_goes_some_day(server: Server) -> None:
    _, whole = sent(server, b"no scan", "a.mov")
    token, cut = announced(server)
    upload = server.call("POST", f"/captures/{cut}/source", {"name": "a.zip", "size": 3}, token=token)[1]
    assert put(upload, b"abc") == 200
    now = datetime.now(UTC)

    def found(days: float, keep_days: float | None) -> Iterator[str]:
        for removal in find_removals(server.store, (now + timedelta(days=days)).timestamp(), keep_days):
            if removal.folder.startswith(SOURCES):
                yield removal.folder.rpartition("/")[2]

    assert not {whole, cut} & set(found(1, 30))
    assert {whole, cut} & set(found(3, 30)) == {cut}
    assert {whole, cut} & set(found(31, 30)) == {whole, cut}
    assert {whole, cut} & set(found(31, None)) == {cut}


SEND = """
const httpCredentials = { username: 'ann', password: 'right' };
const page = await open({ httpCredentials, viewport: { width: 390, height: 800 } });
await page.goto(args.url + '/upload');
const file = name => ({ name, mimeType: 'application/zip', buffer: Buffer.from(args.scan, 'base64') });
await page.setInputFiles('#file', file('Gear box.zip'));
await page.fill('#unit', '0.25');
if (args.shot) await page.screenshot({ path: args.shot });
await page.click('#send');
await page.waitForFunction(() => /has started/.test(document.getElementById('state').textContent));
const state = await page.textContent('#state');
const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
if (args.shot) await page.screenshot({ path: args.shot.replace('.png', '-done.png') });
await page.setInputFiles('#file', file('Gear box.exe'));
await page.click('#send');
await page.waitForSelector('#fault:visible');
return { state, wide, fault: await page.textContent('#fault') };
"""


@needs_chromium
def test_a_signed_in_user_sends_a_scan_from_the_browser(server: Server, tmp_path: Path) -> None:
    assert server.call("GET", "/upload", root="")[0] == 401
    shots = os.environ.get("SCAN2TWIN_TEST_SCREENSHOTS")
    shot = f"{shots}/upload.png" if shots else None
    seen = in_chromium(SEND, url=server.url, scan=base64.b64encode(scan()).decode(), shot=shot)
    ((id_, user),) = server.started
    assert re.fullmatch(r"gear-box-[0-9a-f]{6}", id_)
    assert user == "ann"
    assert f"upload-{id_}" in seen["state"]
    assert not seen["wide"]
    assert "one of .zip" in seen["fault"]
    assert [error for error in seen["errors"] if "422" not in error] == []
    assert server.store.exists(source_key(id_))
    validate(server, id_)
    assert find_capture(server.store, id_).location.capture_id == id_

"""The gallery and a run's model: real objects in a real store, in every state."""

import asyncio
import io
import json
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from ingest_server import HTTP, Server, read_bundle, sha256, signed_in
from PIL import Image

from plugins import api
from plugins.gallery import ModelFigures, Run
from plugins.uploads import Upload
from plugins.views import ViewHost, view_routes
from scan2twin.store.artifacts import read_manifest
from scan2twin.store.directory import DirectoryStore
from scan2twin.store.manifest import Durations, FileEntry, Manifest
from scan2twin.store.models import publish

REPORT = {
    "size_m": [0.1204, 0.05, 0.3],
    "metric": True,
    "heldout_psnr_foreground": 26.04,
    "warnings": ["mask: doubtful"],
}
MEASURED = {"size_m": [1, 1, 1], "metric": True}
FILES = {
    "report.html": b"<h1>Report</h1><script>1</script>", "report.json": json.dumps(REPORT).encode(),
    "model.glb": b"glTF", "model.obj": b"o", "model.mtl": b"m", "model_base_color.png": b"p",
}  # fmt: skip
BASIC = {"Authorization": "Basic YW5uOnJpZ2h0"}


def get(server: Server, path: str) -> tuple[int, str, dict[str, str]]:
    answer = HTTP.request("GET", server.url + path, headers=BASIC)
    return answer.status, answer.data.decode(errors="replace"), dict(answer.headers)


def ask(app: FastAPI, path: str) -> httpx.Response:
    async def answer() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.get(path)

    return asyncio.run(answer())


@pytest.fixture
def model(server: Server) -> str:
    """A capture with a published model; returns its id."""
    capture_id, fingerprint, attempt, now = "gear-box-1", "a" * 64, "first", datetime.now(UTC)
    folder = f"models/{capture_id}/{fingerprint}"
    entries = [FileEntry(name=name, size=len(data), sha256=sha256(data)) for name, data in FILES.items()]
    manifest = Manifest(
        capture_id=capture_id, stage="publish", stage_version=1, fingerprint=fingerprint, inputs={}, config={},
        code_version="tests", libraries={}, host="tests", attempt=attempt, files=entries, peak_memory_mb=1,
        durations=Durations(total_s=1, download_s=0, run_s=1, upload_s=0), started_at=now, finished_at=now,
    )  # fmt: skip
    for name, data in FILES.items():
        server.store.put_bytes(f"{folder}/{attempt}/{name}", data)
    server.store.put_bytes(f"{folder}/{attempt}/hidden.txt", b"not in the manifest")
    server.store.put_bytes(f"{folder}/manifest.json", manifest.model_dump_json(by_alias=True).encode())
    server.store.put_bytes(f"captures/2026/11/20/{capture_id}/capture.json", b"{}")
    server.store.put_bytes("captures/2026/11/21/still-in-work/capture.json", b"{}")
    assert read_manifest(server.store, folder) is not None
    publish(server.store, manifest)
    return capture_id


def test_the_gallery_says_of_each_capture_how_it_stands(server: Server, model: str) -> None:
    announced = {"name": "Gear <box>", "recorded_at": "2026-11-22T10:00:00Z", "notes": "", "user": "ann"}
    for capture_id in (model, "on-its-way"):
        upload = Upload.model_validate(announced | {"capture_id": capture_id})
        server.store.put_bytes(f"uploads/captures/{capture_id}.json", upload.model_dump_json().encode())
    server.runs["r"] = Run("r", "still-in-work", "failed", "draft", {}, "mask")
    status, page, _ = get(server, "/gallery")
    assert status == 200
    cards = page.split("<li>")[1:]
    assert [("on-its-way" in card, "still-in-work" in card, model in card) for card in cards] == [
        (True, False, False), (False, True, False), (False, False, True),
    ]  # fmt: skip
    assert "uploading" in cards[0]
    assert "upload not complete" in cards[0]
    assert "failed" in cards[1]
    for text in ("model ready", "120 × 50 × 300 mm", "good, 26.0 dB", "1 warning", "by ann", "Gear &lt;box&gt;"):
        assert text in cards[2]


def test_an_empty_gallery_says_what_to_do(server: Server, tmp_path: Path) -> None:
    app = FastAPI()
    host = ViewHost(
        reader=lambda: "ann", store=lambda: DirectoryStore(tmp_path), run=lambda _: None, latest_runs=dict,
        stage_output=lambda *_: None, review_path=str,
    )  # fmt: skip
    app.include_router(view_routes(host))
    assert "Record one with a phone" in ask(app, "/gallery").text


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"size_m": [1, 1, 1], "metric": False}, ("size unknown: no metric scale", "quality not measured")),
        (
            {"size_m": [1, 1, 1], "metric": True, "heldout_psnr_foreground": 21},
            ("1000 × 1000 × 1000 mm", "fair, 21.0 dB"),
        ),
        (
            MEASURED | {"heldout_psnr_foreground": 9},
            ("1000 × 1000 × 1000 mm", "rough, 9.0 dB"),
        ),
    ],
)
def test_figures_in_words(raw: dict[str, Any], words: tuple[str, str]) -> None:
    figures = ModelFigures.model_validate(raw)
    assert (figures.size, figures.quality) == words


def test_a_capture_is_shown_by_its_first_photo_until_it_has_a_model(
    server: Server, make_capture: Callable[..., Path]
) -> None:
    bundle = read_bundle(make_capture(frames=3))
    capture_id = json.loads(bundle["capture.json"])["capture_id"]
    for name, data in bundle.items():
        server.store.put_bytes(f"captures/2026/11/22/{capture_id}/{name}", data)
    answer = HTTP.request("GET", f"{server.url}/captures/{capture_id}/thumbnail.jpg", headers=BASIC)
    with Image.open(io.BytesIO(answer.data)) as image:
        assert (image.format, image.size) == ("JPEG", (48, 64))
    assert get(server, "/captures/no-such-capture/thumbnail.jpg")[0] == 404


def test_files_of_the_model_and_no_others_are_served(server: Server, model: str) -> None:
    for name, data in FILES.items():
        status, body, headers = get(server, f"/models/{model}/{name}")
        assert (status, body) == (200, data.decode(errors="replace"))
        assert headers["content-security-policy"].startswith("sandbox")
        assert "allow-same-origin" not in headers["content-security-policy"]
    for path in ("hidden.txt", "..%2Fmanifest.json", "%2e%2e%2fmanifest.json", "nothing.glb"):
        assert get(server, f"/models/{model}/{path}")[0] == 404
    assert get(server, "/models/no-such-capture/report.html")[0] == 404
    assert get(server, "/models/..%2Fx/report.html")[0] in (404, 422)


def test_the_obj_comes_with_what_it_needs(server: Server, model: str) -> None:
    answer = HTTP.request("GET", f"{server.url}/models/{model}/model_obj.zip", headers=BASIC)
    with zipfile.ZipFile(io.BytesIO(answer.data)) as archive:
        assert archive.namelist() == ["model.mtl", "model.obj", "model_base_color.png"]


def test_a_run_shows_its_model_with_downloads(server: Server, model: str) -> None:
    server.runs["run/1"] = Run("run/1", model, "success", "draft", {})
    for path in ("/runs/run/1/model", f"/captures/{model}/model"):
        page = get(server, path)[1]
        assert f'src="/models/{model}/report.html"' in page
        assert 'sandbox="allow-scripts allow-downloads"' in page
        assert [name for name in ("model.glb", "model_obj.zip", "model.usdz") if f"/{name}" in page] == [
            "model.glb",
            "model_obj.zip",
        ]


@pytest.mark.parametrize(
    ("state", "says"),
    [("queued", "the run is queued"), ("running", "the run is running"), ("failed", "the run failed in <b>mask</b>"),
     ("success", "the masks were not approved")],
)  # fmt: skip
def test_a_run_without_a_model_says_why(server: Server, model: str, state: str, says: str) -> None:
    server.runs["run/2"] = Run("run/2", "still-in-work", state, "draft", {}, "mask" if state == "failed" else None)
    assert says in get(server, "/runs/run/2/model")[1]
    assert "no run that makes one" in get(server, "/runs/no-such-run/model")[1]


def test_a_run_shows_the_masks_for_approval(server: Server) -> None:
    for state, says in [
        ("running", "no masks yet"),
        ("failed", "failed in <b>mask</b>"),
        ("success", "the least certain"),
    ]:
        server.runs["run/3"] = Run("run/3", "masked", state, "draft", {}, "mask" if state == "failed" else None)
        page = get(server, "/runs/run/3/masks")[1]
        assert says in page
        assert ('id="approve"' in page) == (state == "success")
    assert 'data-review="/review/run/3"' in page
    assert 'src="/runs/run/3/contact_sheet.jpg"' in page
    server.store.put_bytes("out/masked/mask/contact_sheet.jpg", b"\xff\xd8\xff")
    assert get(server, "/runs/run/3/contact_sheet.jpg")[0] == 200
    assert "no such run" in get(server, "/runs/nothing/masks")[1]
    assert get(server, "/runs/nothing/contact_sheet.jpg")[0] == 404


def test_a_server_without_the_built_recorder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "RECORDER", tmp_path / "nothing")

    def unused(*_: object) -> Any:
        raise AssertionError

    app = api.create_app(
        api.Host(operator=signed_in, uploads=unused, signing_key=unused, start_run=unused, public_url=unused),
        ViewHost(
            reader=signed_in, store=unused, run=unused, latest_runs=unused, stage_output=unused, review_path=unused
        ),
    )
    answer = ask(app, "/recorder/")
    assert (answer.status_code, "make recorder" in answer.text) == (503, True)

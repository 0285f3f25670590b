"""The gallery and a run's model: real objects in a real store, in every state."""

import asyncio
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from ingest_server import HTTP, Server, sha256, signed_in

from plugins import api
from plugins.views import ViewHost, render_gallery
from scan2twin.store.artifacts import read_manifest
from scan2twin.store.captures import CaptureLocation
from scan2twin.store.manifest import Durations, FileEntry, Manifest
from scan2twin.store.models import publish

FILES = {"report.html": b"<h1>Report</h1><script>1</script>", "preview.png": b"\x89PNG", "model.glb": b"glTF"}
BASIC = {"Authorization": "Basic YW5uOnJpZ2h0"}


def get(server: Server, path: str) -> tuple[int, str, dict[str, str]]:
    answer = HTTP.request("GET", server.url + path, headers=BASIC)
    return answer.status, answer.data.decode(errors="replace"), dict(answer.headers)


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


def test_the_gallery_shows_captures_with_and_without_a_model(server: Server, model: str) -> None:
    status, page, _ = get(server, "/gallery")
    assert status == 200
    assert f'href="models/{model}/report.html"' in page
    assert "no model yet</div><strong>still-in-work" in page
    assert page.index("still-in-work") < page.index(model)  # the newest first


def test_an_empty_gallery_says_what_to_do() -> None:
    page = render_gallery([], {}, "/")
    assert "Record one with a phone" in page
    assert "{{" not in page


def test_names_are_text_in_the_page() -> None:
    assert "<script>" not in render_gallery([CaptureLocation("<script>", date(2026, 11, 20))], {}, "/")


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


def test_a_run_shows_its_model_or_that_there_is_none_yet(server: Server, model: str) -> None:
    assert "<h1>Report</h1>" in get(server, f"/runs/run/{model}/model")[1]
    for run in ("run/still-in-work", "no-such-run"):
        status, page, _ = get(server, f"/runs/{run}/model")
        assert (status, "There is no model yet" in page) == (200, True)


def test_a_server_without_the_built_recorder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "RECORDER", tmp_path / "nothing")

    def unused(*_: object) -> Any:
        raise AssertionError

    app = api.create_app(
        api.Host(operator=signed_in, uploads=unused, signing_key=unused, start_run=unused, public_url=unused),
        ViewHost(reader=signed_in, store=unused, capture_of_run=unused),
    )

    async def get_recorder() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.get("/recorder/")

    answer = asyncio.run(get_recorder())
    assert (answer.status_code, "make recorder" in answer.text) == (503, True)

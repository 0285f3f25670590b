"""The plugin in a real Airflow: who gets in, and that an upload starts a run."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from ingest_server import HTTP, Server, announcement, read_bundle, without_document

from scan2twin.airflow_home import USER, AirflowHome
from scan2twin.airflow_server import LocalAirflow
from scan2twin.s3server import EmbeddedS3
from scan2twin.store.s3 import S3Store

DAG_ID = "reconstruct_capture"


@pytest.mark.timeout(1200)
def test_an_upload_starts_a_run_in_airflow(
    s3_server: EmbeddedS3, tmp_path: Path, make_capture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        "SCAN2TWIN_STORE": s3_server.uri,
        "SCAN2TWIN_UPLOAD_PRESET": "draft",
        "SCAN2TWIN_UPLOAD_OVERRIDES": '{"mask": {"heldout_every": 5}}',
        **s3_server.environment,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    home = AirflowHome(tmp_path / "home")
    # Without a scheduler the run stays queued, which is all that is asked here.
    with home.locked(), LocalAirflow(home, environment, components=("api-server", "dag-processor")) as airflow:
        airflow.wait_until_ready(DAG_ID)
        url = f"{airflow.url}/scan2twin"
        server = Server(url, FastAPI(), S3Store(s3_server.uri))
        for method, path in [("POST", "/pairings"), ("GET", f"/pairings/{'0' * 32}"), ("POST", "/captures")]:
            assert server.call(method, path, {})[0] == 401
        pages = {
            "pair": "Record a part with a phone",
            "gallery": "<h1>Captures and models</h1>",
            "runs/no-such-run/model": "There is no model yet, and no run that makes one",
            "runs/no-such-run/masks": "There is no such run",
        }
        for name in pages:
            assert HTTP.request("GET", f"{url}/{name}").status == 401
        login = HTTP.request("POST", f"{airflow.url}/auth/token", json={"username": USER, "password": airflow.password})
        session = str(login.json()["access_token"])
        for name, text in pages.items():
            page = HTTP.request("GET", f"{url}/{name}", headers={"Authorization": f"Bearer {session}"})
            assert (page.status, text in page.data.decode()) == (200, True), name

        status, pairing = server.call("POST", "/pairings", {}, token=session)
        assert status == 201
        assert pairing["link"].startswith(f"{url}/recorder/#pair=")
        token = pairing["link"].partition("#pair=")[2]
        # Neither token does for the other.
        assert server.call("POST", "/pairings", {}, token=token)[0] in (401, 403)
        bundle = read_bundle(make_capture(frames=3))
        capture_id = announcement(bundle)["capture_id"]
        assert server.call("POST", "/captures", announcement(bundle), token=session)[0] == 401
        assert server.call("POST", "/captures", announcement(bundle), token=token)[0] == 201
        server.send(token, capture_id, without_document(bundle))
        for _ in range(2):
            assert server.complete(token, bundle) == (200, {"run_id": f"upload-{capture_id}", "damaged": []})
        run = airflow.api.request("GET", f"/dags/{DAG_ID}/dagRuns/upload-{capture_id}")
        assert run["conf"]["capture_id"] == capture_id
        assert run["conf"]["preset"] == "draft"
        assert run["conf"]["overrides"] == {"mask": {"heldout_every": 5}}
        assert (run["state"], run["triggering_user_name"]) == ("queued", USER)
        assert airflow.api.request("GET", f"/dags/{DAG_ID}/dagRuns")["total_entries"] == 1
        # The run is found, its capture too; there is no model of it yet.
        for path, text in [
            (f"runs/upload-{capture_id}/model", "the run is queued"),
            (f"captures/{capture_id}/model", "the run is queued"),
            (f"runs/upload-{capture_id}/masks", "There are no masks yet"),
            ("gallery", '<span class="state queued">'),
        ]:
            page = HTTP.request("GET", f"{url}/{path}", headers={"Authorization": f"Bearer {session}"})
            assert (page.status, text in page.data.decode()) == (200, True), path
        views = airflow.api.request("GET", "/plugins")["plugins"]
        shown = {view["href"] for plugin in views for view in plugin["external_views"]}
        assert {
            "/scan2twin/pair",
            "/scan2twin/gallery",
            "/scan2twin/runs/{RUN_ID}/model",
            "/scan2twin/runs/{RUN_ID}/masks",
        } <= shown

"""The ingest API on a real HTTP server, over a real S3 server."""

import threading
from collections.abc import Iterator

import pytest
import uvicorn
from ingest_server import KEY, Server, signed_in

from plugins.api import Host, create_app
from plugins.gallery import Run
from plugins.uploads import Uploads
from plugins.views import ViewHost
from scan2twin.s3server import EmbeddedS3
from scan2twin.store.s3 import S3Store


@pytest.fixture(scope="session")
def s3_server() -> Iterator[EmbeddedS3]:
    with EmbeddedS3() as server:
        yield server


@pytest.fixture
def server(s3_server: EmbeddedS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    store = S3Store(s3_server.uri)
    started: list[tuple[str, str]] = []
    runs: dict[str, Run] = {}

    def start_run(capture_id: str, user: str) -> str:
        started.append((capture_id, user))
        return f"upload-{capture_id}"

    app = create_app(
        Host(
            operator=signed_in, uploads=lambda: Uploads(store, store), signing_key=lambda: KEY, start_run=start_run,
            public_url=lambda: None,
        ),
        ViewHost(
            reader=signed_in, store=lambda: store, run=runs.get, review_path=lambda run_id: f"/review/{run_id}",
            latest_runs=lambda: {run.capture_id: run for run in runs.values()},
            stage_output=lambda _, run, stage: f"out/{run.capture_id}/{stage}" if run.state == "success" else None,
        ),
    )  # fmt: skip
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        threading.Event().wait(0.02)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield Server(f"http://127.0.0.1:{port}", app, store, started, runs)
    running.should_exit = True
    thread.join()

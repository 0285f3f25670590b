"""The recorder's figures in Chromium on an emulated phone: `python -m plugins.benchmark [PHOTOS]`.

Needs a checkout with the built recorder, Chromium and Node; recorder-app/e2e/bench.ts measures.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import uvicorn

from plugins.api import Host, create_app
from plugins.tokens import signing_key
from plugins.uploads import Uploads
from plugins.views import ViewHost
from scan2twin.s3server import EmbeddedS3
from scan2twin.store.s3 import S3Store

RECORDER = Path(__file__).parents[1] / "recorder-app"
PHOTOS = 300
TARGETS = {
    "framesPerSecondRecording": "at least 25 of 30",
    "peakPageMegabytes": "at most 400",
    "megabytesAPhoto": "at most 2.5",
    "appPercentOfRaw": "at least 85",
    "megabytesSentTwiceThoughArrived": "none",
    "gzippedKilobytes": "at most 250",
}


def main(photos: int = PHOTOS) -> None:
    """Serve the API on loopback, where everyone may pair while this runs, measure, and print."""
    with EmbeddedS3() as s3:
        os.environ.update(s3.environment)
        store = S3Store(s3.uri)
        app = create_app(
            Host(
                operator=lambda: "benchmark", uploads=lambda: Uploads(store, store), public_url=lambda: None,
                signing_key=lambda: signing_key("benchmark"), start_run=lambda capture_id, _: f"upload-{capture_id}",
            ),
            ViewHost(
                reader=lambda: "benchmark", store=lambda: store, run=lambda _: None, latest_runs=dict,
                stage_output=lambda *_: None, review_path=str,
            ),
        )  # fmt: skip
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            thread.join(0.05)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        done = subprocess.run(
            ["npm", "run", "--silent", "bench", "--", url, str(photos)],
            cwd=RECORDER,
            stdout=subprocess.PIPE,
            check=False,
        )
        server.should_exit = True
        thread.join()
    if done.returncode != 0:
        sys.exit(done.returncode)  # it has said why
    for name, value in json.loads(done.stdout.splitlines()[-1]).items():
        print(f"{name:32} {value:10.2f}  {TARGETS.get(name, '')}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))

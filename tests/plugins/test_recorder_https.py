"""The way of a phone in the same network: HTTPS in front of the API and of the store, and nothing else behind it."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import urllib3
from ingest_server import Server

from plugins.uploads import URL_LIFETIME
from scan2twin.airflow_server import free_port
from scan2twin.store.s3 import S3Store

CADDYFILE = Path(__file__).parents[2] / "recorder-app/Caddyfile"
CADDY = shutil.which("caddy")
HOST = "127.0.0.1"
pytestmark = pytest.mark.skipif(CADDY is None, reason="Caddy is not installed (apt install caddy)")


def test_phones_reach_the_api_and_the_store_and_nothing_else(server: Server, tmp_path: Path) -> None:
    port, store_port = free_port(), free_port()
    settings = {
        "HOST": HOST, "PORT": str(port), "STORE_PORT": str(store_port), "XDG_DATA_HOME": str(tmp_path),
        "AIRFLOW": server.url.removeprefix("http://"), "STORE": server.store.uri.removeprefix("s3+http://"),
    }  # fmt: skip
    caddy = subprocess.Popen(
        [str(CADDY), "run", "--adapter", "caddyfile", "--config", CADDYFILE],
        env={**os.environ, **settings}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    authority = tmp_path / "caddy/pki/authorities/local/root.crt"
    try:
        deadline = time.monotonic() + 60
        while not authority.exists():
            assert caddy.poll() is None, caddy.stderr and caddy.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        https = urllib3.PoolManager(ca_certs=str(authority), retries=urllib3.Retry(connect=20, backoff_factor=0.1))
        for path in ("/", "/api/v2/dags", "/scan2twin/pair", "/scan2twin/api/pairings", "/auth/token"):
            assert https.request("GET", f"https://{HOST}:{port}{path}").status == 404
        # In Airflow the API lies below /scan2twin; here it has no such prefix and says 404 itself, in JSON.
        behind = https.request("POST", f"https://{HOST}:{port}/scan2twin/api/captures", json={})
        assert behind.json() == {"detail": "Not Found"}

        outside = S3Store(f"s3+https://{HOST}:{store_port}")
        key = "captures/2026/11/23/https-test/images/000000.jpg"
        headers = {"Content-Length": "3", "If-None-Match": "*"}
        url = outside.signed_upload(key, headers, URL_LIFETIME)
        assert https.request("PUT", url, body=b"abc", headers={"If-None-Match": "*"}).status == 200
        assert server.store.read_bytes(key) == b"abc"
        assert https.request("GET", f"https://{HOST}:{store_port}/captures").status == 403
        assert https.request("PUT", f"https://{HOST}:{store_port}/captures/other", body=b"abc").status == 403
    finally:
        caddy.terminate()
        caddy.wait(20)

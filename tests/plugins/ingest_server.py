"""A client of the ingest API, and the bundles it sends."""

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import urllib3
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from plugins.gallery import Run
from plugins.tokens import signing_key
from scan2twin.store.s3 import S3Store

KEY = signing_key("a secret of the tests")
PASSWORD = "right"
HTTP = urllib3.PoolManager(retries=False, timeout=30)
Bundle = dict[str, bytes]


def signed_in(credentials: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]) -> str:
    if credentials.password != PASSWORD:
        raise HTTPException(403, "Forbidden")
    return credentials.username


@dataclass
class Server:
    """A running API, and what it did."""

    url: str
    app: FastAPI
    store: S3Store
    started: list[tuple[str, str]] = field(default_factory=list)  # capture, user
    runs: dict[str, Run] = field(default_factory=dict)  # what the pages are told of the DAG's runs

    def call(
        self, method: str, path: str, body: Any = None, *, token: str = "", user: str = "", root: str = "/api"
    ) -> tuple[int, Any]:
        """Send a request and return status and JSON."""
        headers = {}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if user:
            headers |= urllib3.make_headers(basic_auth=f"{user}:{PASSWORD}")
        raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        answer = HTTP.request(
            method, f"{self.url}{root}{path}", body=raw, headers=headers | {"Content-Type": "application/json"}
        )
        return answer.status, json.loads(answer.data) if answer.data else None

    def pair(self, user: str = "ann") -> str:
        """Return the token that an operator's QR code gives to a phone."""
        status, made = self.call("POST", "/pairings", {}, user=user)
        assert status == 201, made
        return str(made["link"].partition("#pair=")[2])

    def sign(self, token: str, capture_id: str, bundle: Bundle) -> tuple[int, Any]:
        files = [{"name": name, "size": len(data), "sha256": sha256(data)} for name, data in bundle.items()]
        return self.call("POST", f"/captures/{capture_id}/presign", {"files": files}, token=token)

    def send(self, token: str, capture_id: str, bundle: Bundle) -> None:
        """Upload files as a phone does."""
        status, answer = self.sign(token, capture_id, bundle)
        assert status == 200, answer
        for upload in answer["uploads"]:
            assert put(upload, bundle[upload["name"]]) == 200

    def complete(self, token: str, bundle: Bundle) -> tuple[int, Any]:
        document = json.loads(bundle["capture.json"])
        return self.call("POST", f"/captures/{document['capture_id']}/complete", bundle["capture.json"], token=token)


def put(upload: dict[str, Any], data: bytes) -> int:
    return int(HTTP.request("PUT", upload["url"], body=data, headers=upload["headers"]).status)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_bundle(folder: Path) -> Bundle:
    """Read a capture's folder; its capture.json gets an id of its own and today's date."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    document = json.loads(files["capture.json"])
    document |= {"capture_id": f"scan-{uuid4().hex[:10]}", "recorded_at": datetime.now(UTC).isoformat()}
    return files | {"capture.json": json.dumps(document).encode()}


def announcement(bundle: Bundle) -> dict[str, Any]:
    document = json.loads(bundle["capture.json"])
    return {key: document[key] for key in ("capture_id", "name", "recorded_at")}


def without_document(bundle: Bundle) -> Bundle:
    return {name: data for name, data in bundle.items() if name != "capture.json"}

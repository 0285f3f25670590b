"""Stores to test against: a folder, a real SeaweedFS server, and any endpoint that SCAN2TWIN_TEST_S3 names."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from minio import Minio

from scan2twin.s3server import EmbeddedS3
from scan2twin.store import ArtifactStore, open_store

ENDPOINT_VARIABLE = "SCAN2TWIN_TEST_S3"  # s3+http(s)://host:port, with the credentials in AWS_…
KINDS = ["directory", "seaweedfs", *(["endpoint"] if os.environ.get(ENDPOINT_VARIABLE) else [])]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[EmbeddedS3]:
    with EmbeddedS3() as server:
        yield server


@pytest.fixture
def s3_uri(s3_server: EmbeddedS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of an S3 store of the test's own, with its credentials in the environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    prefix = f"t{uuid4().hex[:8]}"
    yield f"{s3_server.uri}/{prefix}"
    # Every bucket holds several of the server's volumes, whose number the free disk limits: give them back.
    client = Minio(s3_server.endpoint, s3_server.access_key, s3_server.secret_key, secure=False, region="us-east-1")
    for bucket in client.list_buckets():
        if bucket.name.startswith(prefix):
            client.remove_bucket(bucket.name)  # SeaweedFS also deletes what is in it


@pytest.fixture(params=KINDS)
def store_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "directory":
        return str(tmp_path / "store")
    if request.param == "endpoint":
        return f"{os.environ[ENDPOINT_VARIABLE]}/t{uuid4().hex[:8]}"
    uri: str = request.getfixturevalue("s3_uri")
    return uri


@pytest.fixture
def store(store_uri: str) -> ArtifactStore:
    return open_store(store_uri)

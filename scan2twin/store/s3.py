"""The artifact store on any S3 endpoint, through the `minio` client."""

import hashlib
import io
import json
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit
from xml.etree.ElementTree import ParseError

import certifi
import urllib3
from minio import Minio
from minio.credentials import AssumeRoleProvider
from minio.error import MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError

from scan2twin.errors import ConfigError, InputError, NotFoundError, StoreError
from scan2twin.store.base import StoredObject, check_key, disk_errors
from scan2twin.store.signing import Credentials, presigned_url
from scan2twin.store.transfer import THREADS

log = logging.getLogger("scan2twin")

CA_VARIABLE = "AWS_CA_BUNDLE"  # a file with the certificates to trust, as the AWS tools read it
PART_BYTES = 16 << 20  # larger files go up in parts of this size, each of which can be tried again
ATTEMPTS = 6
FIRST_DELAY_S = 0.2
MAX_DELAY_S = 5.0
_TIMEOUT = urllib3.Timeout(connect=5.0, read=60.0)  # seconds; read: between two packets, not for the whole object
_CHUNK_BYTES = 1 << 20
_WHOLE_BYTES = 4 << 20  # smaller objects are read in one go, which saves the client two copies
_PAGE = 1000  # keys a listing request returns at most
_DEFAULT_REGION = "us-east-1"  # what servers other than AWS expect; known, it saves a request a bucket

# HTTP status and S3 error codes after which the same request may succeed.
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
_TRANSIENT_CODES = {
    "BadDigest", "IncompleteBody", "InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable",
    "SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "ThrottlingException", "TooManyRequests",
    "XAmzContentSHA256Mismatch", "ConditionalRequestConflict",
}  # fmt: skip
# What to do about the others, by S3 error code.
_CREDENTIALS = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
_REMEDIES = {
    "AccessDenied": "allow this key to read and write here, or " + _CREDENTIALS,
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "ExpiredToken": "get new temporary credentials",
    "RequestTimeTooSkewed": "set this machine's clock",
    "AuthorizationHeaderMalformed": "set AWS_REGION to the bucket's region",
    "XMinioStorageFull": "the store's disks are full; free some space",
}

_NOT_FOUND_CODES = {"NoSuchKey", "NoSuchBucket", "NoSuchObject", "NotFound"}
# Everything the client raises. It lets a parse error through when an answer's XML is cut off.
_CLIENT_ERRORS = (MinioException, HTTPError, ParseError)
_PREFIX = re.compile(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?")  # a bucket's name has 63 characters at most
_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,38}[a-z0-9]")

T = TypeVar("T")


class S3Store:
    """Keys in buckets: the first part of a key, after an optional prefix, is the bucket, the rest the object's key.

    Every request has timeouts and is tried `ATTEMPTS` times with exponential backoff and jitter where that can
    help. Buckets are made when first written to, if the credentials allow it.
    """

    def __init__(self, uri: str) -> None:
        """Connect to `s3+http(s)://host[:port][/bucket-prefix]` as the AWS_… variables say. Raises ConfigError."""
        self.uri = uri
        parts = urlsplit(uri)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigError("store: an S3 URI is s3+http(s)://host:port/prefix; put credentials into AWS_… variables")
        key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
        if not parts.hostname or not key or not secret:
            raise ConfigError(f"store {uri}: name a host, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        prefix = parts.path.strip("/")
        if prefix and not _PREFIX.fullmatch(prefix):
            raise ConfigError(f"store {uri}: bucket prefix {prefix!r}: use at most 20 of a-z, 0-9 and -")
        authorities = os.environ.get(CA_VARIABLE) or os.environ.get("SSL_CERT_FILE") or certifi.where()
        if not Path(authorities).is_file():
            raise ConfigError(f"store {uri}: {CA_VARIABLE}: there is no file {authorities}")
        self._bucket_prefix = f"{prefix}-" if prefix else ""
        self._http = urllib3.PoolManager(
            maxsize=2 * THREADS, timeout=_TIMEOUT, retries=False, cert_reqs="CERT_REQUIRED", ca_certs=authorities
        )
        token, region = os.environ.get("AWS_SESSION_TOKEN") or None, os.environ.get("AWS_REGION") or _DEFAULT_REGION
        self._credentials = Credentials(key, secret, token, region)
        self._endpoint = f"{parts.scheme.removeprefix('s3+')}://{parts.netloc}"
        self._client = Minio(
            parts.netloc, key, secret, token, secure=parts.scheme == "s3+https", region=region, http_client=self._http
        )

    def put_file(self, key: str, path: Path) -> str:
        """See `ArtifactStore.put_file`."""
        bucket, name = self._split(key)

        def put() -> str:
            with disk_errors(f"reading {path}"), path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
                file.seek(0)
                self._client.put_object(bucket, name, file, size, part_size=PART_BYTES, num_parallel_uploads=1)
            return sha256

        return self._write(key, bucket, put)

    def put_bytes(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        """See `ArtifactStore.put_bytes`."""
        bucket, name = self._split(key)
        if not if_absent:
            self._write(key, bucket, lambda: self._client.put_object(bucket, name, io.BytesIO(data), len(data)))
            return True
        tries = 0

        def put() -> bool:
            nonlocal tries
            tries += 1
            # The client's own methods pass no conditional header on, so this is a signed URL.
            url = self.presigned_url("PUT", key)
            response = self._http.request("PUT", url, body=data, headers={"If-None-Match": "*"})
            if response.status == HTTPStatus.PRECONDITION_FAILED:
                return False
            if response.status != HTTPStatus.OK:
                raise S3Error.fromxml(response) if response.data else ServerError("no answer", response.status)
            return True

        stored = self._write(key, bucket, put)
        # If an earlier try reached the server and only its answer was lost, the object that is there is ours.
        return stored or (tries > 1 and self.read_bytes(key) == data)

    def get_file(self, key: str, path: Path) -> str:
        """See `ArtifactStore.get_file`."""
        bucket, name = self._split(key)

        def get() -> str:
            digest = hashlib.sha256()
            response = self._client.get_object(bucket, name)
            small = int(response.headers.get("Content-Length", _WHOLE_BYTES)) < _WHOLE_BYTES
            with response, disk_errors(f"store {self.uri}: copying {key} to {path}"), path.open("wb") as file:
                for chunk in response.stream(None if small else _CHUNK_BYTES):
                    digest.update(chunk)
                    file.write(chunk)
            return digest.hexdigest()

        return self._read(key, get)

    def read_bytes(self, key: str) -> bytes:
        """See `ArtifactStore.read_bytes`."""
        bucket, name = self._split(key)

        def read() -> bytes:
            with self._client.get_object(bucket, name) as response:
                data: bytes = response.read()
            return data

        return self._read(key, read)

    def exists(self, key: str) -> bool:
        """See `ArtifactStore.exists`."""
        bucket, name = self._split(key)
        try:
            self._read(key, lambda: self._client.stat_object(bucket, name))
        except NotFoundError:
            return False
        return True

    def list_objects(self, folder: str) -> Iterator[StoredObject]:
        """See `ArtifactStore.list_objects`."""
        last: str | None = None
        while True:
            # A page at a time, so that a page that fails can be read again.
            page = self._list(folder, _PAGE, recursive=True, start_after=last)
            for found in page:
                if not found.object_name.endswith("/"):  # some consoles make an empty object for a folder
                    yield StoredObject(self._key(found), found.size, found.last_modified.timestamp())
            if len(page) < _PAGE:
                return
            last = page[-1].object_name

    def list_folders(self, folder: str) -> Sequence[str]:
        """See `ArtifactStore.list_folders`."""
        return sorted(self._key(found).rsplit("/", 1)[1] for found in self._list(folder, None) if found.is_dir)

    def delete(self, key: str) -> None:
        """See `ArtifactStore.delete`."""
        bucket, name = self._split(key)
        try:
            self._read(key, lambda: self._client.remove_object(bucket, name))
        except NotFoundError:
            return

    def presigned_url(self, method: str, key: str, expires: timedelta = timedelta(minutes=15)) -> str:
        """Return a URL with which anyone may GET or PUT this object until it expires."""
        bucket, name = self._split(key)
        url: str = self._client.get_presigned_url(method, bucket, name, expires=expires)
        return url

    def signed_upload(self, key: str, headers: Mapping[str, str], expires: timedelta) -> str:
        """Return a URL with which anyone may PUT this object, with just these headers, until it expires."""
        bucket, name = self._split(key)
        url = f"{self._endpoint}/{bucket}/{quote(name)}"
        return presigned_url("PUT", url, headers, self._credentials, datetime.now(UTC), expires)

    def bucket_of(self, area: str) -> str:
        """Return the bucket that holds the keys whose first part is `area`."""
        return self._bucket_prefix + area

    def temporary_credentials(self, policy: Mapping[str, Any], lifetime: timedelta) -> Credentials:
        """Return keys, made by the server (STS AssumeRole), for what `policy` and this store's own keys both allow.

        Raises StoreError if the server does not make them or cannot be reached.
        """
        own = self._credentials
        provider = AssumeRoleProvider(
            sts_endpoint=self._endpoint, access_key=own.access_key, secret_key=own.secret_key, region=own.region,
            duration_seconds=round(lifetime.total_seconds()), policy=json.dumps(policy), role_session_name="scan2twin",
            http_client=self._http,
        )  # fmt: skip
        try:
            made = provider.retrieve()
        except (ValueError, *_CLIENT_ERRORS) as error:  # ValueError: the server refuses
            raise StoreError(
                f"store {self.uri}: no keys for one capture: {error}; the server must allow AssumeRole to this key, or "
                "unset SCAN2TWIN_CAPTURE_KEYS"
            ) from error
        return Credentials(made.access_key, made.secret_key, made.session_token, own.region)

    def _split(self, key: str) -> tuple[str, str]:
        """Return the bucket and the object's key."""
        bucket, _, name = check_key(key).partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise InputError(f"store {self.uri}: {key}: {bucket!r} cannot be a bucket; use 3 to 40 of a-z, 0-9 and -")
        return self.bucket_of(bucket), name

    def _key(self, found: Any) -> str:
        """Return the store's key of a listed object or folder."""
        return f"{found.bucket_name.removeprefix(self._bucket_prefix)}/{found.object_name}".rstrip("/")

    def _list(self, folder: str, limit: int | None, **options: Any) -> list[Any]:
        bucket, name = self._split(folder)
        prefix = f"{name}/" if name else ""
        try:
            return self._read(folder, lambda: list(islice(self._client.list_objects(bucket, prefix, **options), limit)))
        except NotFoundError:  # no bucket yet
            return []

    def _write(self, key: str, bucket: str, action: Callable[[], T]) -> T:
        """Call `action` as `_read` does, making the bucket if there is none."""
        try:
            return self._read(key, action)
        except NotFoundError:
            self._read(key, lambda: self._make_bucket(bucket))
            return self._read(key, action)

    def _make_bucket(self, bucket: str) -> None:
        try:
            self._client.make_bucket(bucket)
        except S3Error as error:
            if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):  # another process was faster
                raise

    def _read(self, key: str, action: Callable[[], T]) -> T:
        """Call `action` until it works or cannot; raise StoreError or NotFoundError."""
        try:
            return self._try(key, action)
        except _CLIENT_ERRORS as error:
            raise self._translated(key, error) from error

    def _try(self, key: str, action: Callable[[], T]) -> T:
        """Call `action`, again after each transient error; the last error is raised as it is."""
        delay_s = FIRST_DELAY_S
        for attempt in range(1, ATTEMPTS):
            try:
                return action()
            except _CLIENT_ERRORS as error:
                if not _is_transient(error):
                    raise
                log.warning("store %s: %s: %s; try %d of %d", self.uri, key, _short(error), attempt, ATTEMPTS)
            time.sleep(random.uniform(0.5, 1) * delay_s)  # jitter parts clients that failed together
            delay_s = min(2 * delay_s, MAX_DELAY_S)
        return action()

    def _translated(self, key: str, error: Exception) -> StoreError:
        if isinstance(error, S3Error) and error.code in _NOT_FOUND_CODES:
            return NotFoundError(f"store {self.uri}: there is no object {key} ({error.code})")
        remedy = _REMEDIES.get(error.code or "") if isinstance(error, S3Error) else None
        if remedy is None:
            tried = f" after {ATTEMPTS} tries" if _is_transient(error) else ""
            remedy = f"given up{tried}; check the endpoint, its certificate and the network"
        return StoreError(f"store {self.uri}: {key}: {_short(error)}; {remedy}")


def _is_transient(error: Exception) -> bool:
    if isinstance(error, S3Error):
        return error.code in _TRANSIENT_CODES or error.response.status in _TRANSIENT_STATUS
    if isinstance(error, ServerError):
        return error.status_code in _TRANSIENT_STATUS
    # Broken connections, timeouts, answers that are cut off or a proxy's own. A certificate stays wrong.
    return "CERTIFICATE_VERIFY_FAILED" not in str(error)


def _short(error: Exception) -> str:
    if isinstance(error, S3Error):
        return f"HTTP {error.response.status} {error.code}: {error.message}"
    return f"{type(error).__name__}: {str(error)[:200]}"

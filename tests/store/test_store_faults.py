"""An S3 store on a bad day: every fault happens on the wire, between the real client and a real server."""

import hashlib
import io
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from uuid import uuid4

import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fault_proxy import Fault, FaultProxy
from minio import Minio

from scan2twin.errors import ConfigError, IntegrityError, NotFoundError, StoreError
from scan2twin.s3server import EmbeddedS3
from scan2twin.store import ArtifactStore, open_store, s3
from scan2twin.store.artifacts import download_files
from scan2twin.store.manifest import FileEntry

TRANSIENT = [Fault.INTERNAL_ERROR, Fault.SLOW_DOWN, Fault.TOO_MANY_REQUESTS, Fault.HTML_GATEWAY, Fault.DROP,
             Fault.DROP_ANSWER, Fault.STALL]  # fmt: skip
KEY = "artifacts/mug/file"
DATA = b"some bytes " * 1000


@pytest.fixture
def proxy(s3_server: EmbeddedS3) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def flaky(proxy: FaultProxy, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """A store behind the proxy, with one object at KEY, short delays and short timeouts."""
    monkeypatch.setattr(s3, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(s3, "_TIMEOUT", urllib3.Timeout(connect=1.0, read=1.0))
    store = open_store(f"s3+http://{proxy.endpoint}/t{uuid4().hex[:8]}")
    store.put_bytes(KEY, DATA)
    proxy.seen.clear()
    return store


@pytest.mark.parametrize("fault", [*TRANSIENT, Fault.CUT_ANSWER])
def test_reading_survives(flaky: ArtifactStore, proxy: FaultProxy, tmp_path: Path, fault: Fault) -> None:
    proxy.faults.extend([fault] if fault is Fault.STALL else [fault, fault])
    assert flaky.get_file(KEY, tmp_path / "x") == hashlib.sha256(DATA).hexdigest()
    assert (tmp_path / "x").read_bytes() == DATA
    proxy.faults.append(fault)
    assert flaky.read_bytes(KEY) == DATA
    proxy.faults.append(fault)
    assert [stored.key for stored in flaky.list_objects("artifacts/mug")] == [KEY]
    assert not proxy.faults


@pytest.mark.parametrize("fault", TRANSIENT)
def test_writing_survives(flaky: ArtifactStore, proxy: FaultProxy, tmp_path: Path, fault: Fault) -> None:
    (tmp_path / "x").write_bytes(DATA)
    proxy.faults.append(fault)
    assert flaky.put_file("artifacts/mug/other", tmp_path / "x") == hashlib.sha256(DATA).hexdigest()
    proxy.faults.append(fault)
    assert flaky.exists("artifacts/mug/other")
    assert flaky.read_bytes("artifacts/mug/other") == DATA
    proxy.faults.append(fault)
    flaky.delete("artifacts/mug/other")
    assert not flaky.exists("artifacts/mug/other")


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_conditional_write_counts_once(flaky: ArtifactStore, proxy: FaultProxy, fault: Fault) -> None:
    # With DROP_ANSWER the first try is done by the server and the second is refused: the writer has still won.
    proxy.faults.append(fault)
    assert flaky.put_bytes("artifacts/mug/manifest.json", b"mine", if_absent=True)
    proxy.faults.append(fault)
    assert not flaky.put_bytes("artifacts/mug/manifest.json", b"another's", if_absent=True)
    assert flaky.read_bytes("artifacts/mug/manifest.json") == b"mine"


def test_a_failed_part_of_a_large_file_is_sent_again(flaky: ArtifactStore, proxy: FaultProxy, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(s3.PART_BYTES + 1))
    proxy.methods = {"PUT"}
    proxy.faults.extend([Fault.SLOW_DOWN, Fault.DROP])
    flaky.put_file("artifacts/mug/large", tmp_path / "large")
    assert next(flaky.list_objects("artifacts/mug/large"), None) is None  # a file, not a folder
    assert (
        flaky.get_file("artifacts/mug/large", tmp_path / "back") == hashlib.sha256(bytes(s3.PART_BYTES + 1)).hexdigest()
    )


def test_gives_up_after_all_tries(flaky: ArtifactStore, proxy: FaultProxy, caplog: pytest.LogCaptureFixture) -> None:
    proxy.faults.extend([Fault.SLOW_DOWN] * 20)
    with pytest.raises(StoreError, match=rf"{KEY}: HTTP 503 SlowDown: no; given up after {s3.ATTEMPTS} tries"):
        flaky.read_bytes(KEY)
    assert len(proxy.seen) == s3.ATTEMPTS
    assert len(caplog.records) == s3.ATTEMPTS - 1


def test_waits_longer_each_time(flaky: ArtifactStore, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []
    monkeypatch.setattr(s3, "FIRST_DELAY_S", 1.0)
    monkeypatch.setattr(s3.time, "sleep", delays.append)
    proxy.faults.extend([Fault.INTERNAL_ERROR] * 20)
    with pytest.raises(StoreError):
        flaky.read_bytes(KEY)
    for delay, longest in zip(delays, [1, 2, 4, 5, 5], strict=True):
        assert longest / 2 <= delay <= longest


def test_what_cannot_get_better_is_not_tried_again(
    flaky: ArtifactStore, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFoundError):
        flaky.read_bytes("artifacts/mug/absent")
    assert len(proxy.seen) == 1
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match=r"SignatureDoesNotMatch.*check AWS_ACCESS_KEY_ID"):
        open_store(flaky.uri).read_bytes(KEY)
    assert len(proxy.seen) == 2


def test_nobody_listens(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "FIRST_DELAY_S", 0.001)
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        store = open_store(f"s3+http://127.0.0.1:{unheard.getsockname()[1]}")
        with pytest.raises(StoreError, match=r"refused; given up after .* check the endpoint"):
            store.put_bytes(KEY, b"")


def test_bytes_damaged_on_their_way_are_read_again(flaky: ArtifactStore, proxy: FaultProxy, tmp_path: Path) -> None:
    entry = FileEntry(name="file", size=len(DATA), sha256=hashlib.sha256(DATA).hexdigest())
    proxy.faults.append(Fault.FLIP_BIT)
    download_files(flaky, "artifacts/mug", [entry], tmp_path)
    assert (tmp_path / "file").read_bytes() == DATA
    assert len(proxy.seen) == 2


def test_bytes_damaged_for_good_are_refused(flaky: ArtifactStore, tmp_path: Path) -> None:
    entry = FileEntry(name="file", size=len(DATA), sha256=hashlib.sha256(DATA).hexdigest())
    for damaged in (DATA[:-1], DATA + b"x", b"", b"X" + DATA[1:]):
        flaky.put_bytes(KEY, damaged)
        with pytest.raises(IntegrityError, match=f"{KEY} is damaged: {len(damaged)} bytes"):
            download_files(flaky, "artifacts/mug", [entry], tmp_path)


def make_certificate(folder: Path) -> Path:
    """Write a certificate for 127.0.0.1 that signs itself, with its key, to a .pem file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(Encoding.PEM)
    )
    return path


def test_tls_with_an_authority_of_ones_own(
    s3_server: EmbeddedS3, s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FaultProxy(s3_server.endpoint, context) as proxy:
        uri = f"s3+https://{proxy.endpoint}/t{uuid4().hex[:8]}"
        with pytest.raises(StoreError, match=r"CERTIFICATE_VERIFY_FAILED.*check the endpoint, its certificate"):
            open_store(uri).put_bytes(KEY, DATA)
        assert proxy.seen == []
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        store = open_store(uri)
        store.put_bytes(KEY, DATA)
        assert store.put_bytes("artifacts/mug/manifest.json", DATA, if_absent=True)
        assert store.read_bytes(KEY) == DATA


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3+http://key:secret@host:1/", "put credentials into AWS_"),
        ("s3+http://host:1/Bad_Prefix", "bucket prefix 'Bad_Prefix'"),
        ("s3+http:///x", "name a host"),
        ("ftp://host/x", "no such kind of store"),
        ("file://elsewhere/x", "no such kind of store"),
    ],
)
def test_wrong_addresses_are_refused(uri: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(ConfigError, match=message):
        open_store(uri)


def test_missing_credentials_and_certificates_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    with pytest.raises(ConfigError, match="set AWS_ACCESS_KEY_ID"):
        open_store("s3+http://host:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/no/such.pem")
    with pytest.raises(ConfigError, match=r"AWS_CA_BUNDLE: there is no file /no/such\.pem"):
        open_store("s3+https://host:1")


def test_folder_markers_of_consoles_are_no_objects(s3_server: EmbeddedS3, s3_uri: str) -> None:
    store = open_store(s3_uri)
    store.put_bytes("captures/2026/x", b"1")
    client = Minio(s3_server.endpoint, s3_server.access_key, s3_server.secret_key, secure=False)
    client.put_object(f"{s3_uri.rsplit('/', 1)[1]}-captures", "2026/marked/", io.BytesIO(), 0)
    assert [stored.key for stored in store.list_objects("captures")] == ["captures/2026/x"]
    assert store.list_folders("captures/2026") == ["marked"]

"""Keys for one stage of one capture, made by a real server: enough for the stage, and for nothing else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from scan2twin.errors import ConfigError, StoreError
from scan2twin.stages import stage_named
from scan2twin.store import ArtifactStore, open_store
from scan2twin.store.directory import DirectoryStore
from scan2twin.store.session_keys import stage_keys, stage_policy

AN_HOUR = timedelta(hours=1)
OF_SKULL = {
    "captures/2026/11/20/skull/capture.json",
    "captures/2026/11/20/skull/images/000001.jpg",
    "artifacts/skull/condition/f/manifest.json",
    "models/skull/latest.json",
}
OF_OTHERS = {
    "captures/2026/11/20/banana/capture.json",
    "artifacts/banana/mask/f/manifest.json",
    "artifacts/skull-2/mask/f/manifest.json",
    "models/banana/latest.json",
}


@pytest.fixture
def whole(s3_uri: str) -> ArtifactStore:
    store = open_store(s3_uri)
    for key in OF_SKULL | OF_OTHERS:
        store.put_bytes(key, key.encode())
    return store


@contextmanager
def keys_of(store: ArtifactStore, stage: str) -> Iterator[ArtifactStore]:
    """Yield the same store opened with the keys of a stage of the capture `skull`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stage_keys(store, "skull", stage_named(stage), AN_HOUR).items():
            patch.setenv(name, value)
        yield open_store(store.uri)


def refuses(action: Callable[[], object]) -> bool:
    try:
        action()
    except StoreError as error:
        return "AccessDenied" in str(error)
    return False


def test_a_stage_reads_its_capture_and_no_other(whole: ArtifactStore) -> None:
    with keys_of(whole, "mask") as narrow:
        for key in OF_SKULL:
            assert narrow.read_bytes(key) == key.encode()
        assert {key for key in OF_OTHERS if refuses(lambda key=key: narrow.read_bytes(key))} == OF_OTHERS
        # What is only missing is missing, not forbidden: a stage looks for its manifest before it runs.
        assert not narrow.exists("artifacts/skull/mask/f/manifest.json")
        assert not narrow.exists("captures/2026/11/21/skull/capture.json")
        assert narrow.list_folders("captures/2026/11/20") == ["banana", "skull"]


@pytest.mark.parametrize(
    ("stage", "own", "others"),
    [
        ("mask", "artifacts/skull/mask/f", {"models/skull/latest.json"}),
        ("publish", "models/skull/f", {"artifacts/skull/publish/f/a.bin"}),
    ],
)
def test_a_stage_writes_its_own_outputs_and_nothing_else(
    whole: ArtifactStore, stage: str, own: str, others: set[str]
) -> None:
    with keys_of(whole, stage) as narrow:
        assert narrow.put_bytes(f"{own}/manifest.json", b"{}", if_absent=True)
        assert not narrow.put_bytes(f"{own}/manifest.json", b"[]", if_absent=True)
        narrow.delete(f"{own}/manifest.json")
        of_earlier_stages = {key for key in OF_SKULL if not key.startswith("models/")}
        for key in OF_OTHERS | of_earlier_stages | others:
            assert refuses(lambda key=key: narrow.put_bytes(key, b"changed")), key
            assert refuses(lambda key=key: narrow.delete(key)), key
    for key in OF_OTHERS | of_earlier_stages:
        assert whole.read_bytes(key) == key.encode()


def test_the_first_stage_alone_may_make_a_capture_of_a_scan_that_waits(whole: ArtifactStore) -> None:
    mine, of_another = "uploads/sources/skull/scan.zip", "uploads/sources/banana/scan.zip"
    for key in (mine, of_another):
        whole.put_bytes(key, b"PK")
    with keys_of(whole, "mask") as narrow:
        assert refuses(lambda: narrow.read_bytes(mine))
    with keys_of(whole, "validate") as narrow:
        assert narrow.read_bytes(mine) == b"PK"
        assert not narrow.exists("uploads/sources/skull/source.json")
        narrow.put_bytes("captures/2026/11/20/skull/frames.jsonl", b"{}")
        narrow.delete(mine)
        assert refuses(lambda: narrow.read_bytes(of_another))
        assert refuses(lambda: narrow.put_bytes("captures/2026/11/20/banana/frames.jsonl", b"{}"))
        assert refuses(lambda: narrow.put_bytes("artifacts/skull/mask/f/manifest.json", b"{}"))


def test_large_files_go_up_in_parts(whole: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * (17 << 20))
    with keys_of(whole, "reconstruct") as narrow:
        narrow.put_file("artifacts/skull/reconstruct/f/large", tmp_path / "large")


def test_a_server_that_makes_no_such_keys_is_named(whole: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guess")
    with pytest.raises(StoreError, match="AssumeRole"):
        stage_keys(open_store(whole.uri), "skull", stage_named("mask"), AN_HOUR)


def test_a_folder_has_no_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SCAN2TWIN_CAPTURE_KEYS"):
        stage_keys(DirectoryStore(tmp_path), "skull", stage_named("mask"), AN_HOUR)


@pytest.mark.parametrize("stage", ["validate", "mask"])
def test_the_policy_names_the_stores_own_buckets(stage: str) -> None:
    policy = stage_policy("acme-{}".format, "skull", stage_named(stage))
    resources = [resource for statement in policy["Statement"] for resource in statement["Resource"]]
    assert all(resource.startswith("arn:aws:s3:::acme-") for resource in resources)
    assert len(str(policy)) < 2048  # the longest that AWS takes

"""Captures in the store: imported whole, found by id or day, checked on the way out."""

import json
import shutil
import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from scan2twin.errors import CaptureError, InputError, MissingArtifactError, StoreError
from scan2twin.store import ArtifactStore, open_store
from scan2twin.store.captures import (
    StoredCapture,
    download_capture,
    find_capture,
    import_capture,
    list_captures,
)

MakeCapture = Callable[..., Path]
FOLDER = "captures/2026/11/20/test-capture"


def rewrite(capture: Path, **fields: object) -> Path:
    document = json.loads((capture / "capture.json").read_text())
    (capture / "capture.json").write_text(json.dumps({**document, **fields}))
    return capture


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(store: ArtifactStore) -> dict[str, bytes]:
    return {found.key: store.read_bytes(found.key) for found in store.list_objects("captures")}


def test_a_capture_comes_back_as_it_was(store: ArtifactStore, make_capture: MakeCapture, tmp_path: Path) -> None:
    capture = make_capture()
    assert import_capture(store, capture) == "test-capture"
    found = find_capture(store, "test-capture")
    assert found.location.folder == FOLDER
    download_capture(store, found, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(capture)


def test_a_zip_gives_the_same_capture(store: ArtifactStore, make_capture: MakeCapture, tmp_path: Path) -> None:
    capture = make_capture()
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", capture)
    assert import_capture(store, Path(archive)) == "test-capture"
    download_capture(store, find_capture(store, "test-capture"), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(capture)


def test_the_same_capture_is_not_uploaded_again(tmp_path: Path, make_capture: MakeCapture) -> None:
    store, capture = open_store(str(tmp_path / "store")), make_capture()
    import_capture(store, capture)
    before = {found.key: found.modified for found in store.list_objects("captures")}
    import_capture(store, capture)
    assert {found.key: found.modified for found in store.list_objects("captures")} == before


def test_other_content_under_the_same_id_replaces_it(store: ArtifactStore, make_capture: MakeCapture) -> None:
    import_capture(store, make_capture("first", frames=12))
    fingerprint = find_capture(store, "test-capture").fingerprint
    second = make_capture("second", frames=9)
    import_capture(store, second)
    assert find_capture(store, "test-capture").fingerprint != fingerprint
    assert stored(store) == {f"{FOLDER}/{name}": data for name, data in contents(second).items()}


def test_a_new_recording_time_moves_the_capture(store: ArtifactStore, make_capture: MakeCapture) -> None:
    import_capture(store, make_capture("first"))
    # Half past midnight in Kiritimati is still the day before in UTC.
    moved = rewrite(make_capture("second"), recorded_at="2027-01-02T00:30:00+14:00")
    with pytest.raises(CaptureError, match="recorded_at"):
        import_capture(store, moved)
    import_capture(store, rewrite(moved, recorded_at="2027-01-01T10:30:00Z"))
    assert {key.rsplit("/", 2)[0] for key in stored(store)} <= {
        "captures/2027/01/01/test-capture", "captures/2027/01/01"}  # fmt: skip
    assert [c.recorded_on for c in list_captures(store)] == [date(2027, 1, 1)]


class FailingStore:
    """A real store of which one kind of request starts to fail."""

    def __init__(self, store: ArtifactStore, puts_left: int) -> None:
        self._store, self._puts_left = store, puts_left

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def put_file(self, key: str, path: Path) -> str:
        self._puts_left -= 1
        if self._puts_left < 0:
            raise StoreError("the line is down")
        return self._store.put_file(key, path)


def test_an_import_that_is_cut_is_not_a_capture(store: ArtifactStore, make_capture: MakeCapture) -> None:
    import_capture(store, make_capture("first"))
    with pytest.raises(StoreError, match="the line is down"):
        import_capture(FailingStore(store, 3), make_capture("second", frames=9))
    with pytest.raises(MissingArtifactError, match="no capture 'test-capture'"):
        find_capture(store, "test-capture")
    import_capture(store, make_capture("third", frames=9))
    assert find_capture(store, "test-capture")


def test_a_broken_bundle_is_refused_and_nothing_stored(store: ArtifactStore, make_capture: MakeCapture) -> None:
    capture = make_capture()
    (capture / "images/000003.jpg").write_bytes(b"other bytes")
    (capture / "images/000004.jpg").unlink()
    with pytest.raises(CaptureError) as refusal:
        import_capture(store, capture)
    assert any("images/000003.jpg" in reason for reason in refusal.value.reasons)
    assert any("images/000004.jpg" in reason for reason in refusal.value.reasons)
    assert stored(store) == {}


def test_a_path_that_is_no_capture_is_refused(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="no such folder or file"):
        import_capture(store, tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CaptureError, match="not a scan that is known here"):
        import_capture(store, tmp_path / "notes.txt")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("../../capture.json", "{}")
    with pytest.raises(CaptureError):
        import_capture(store, tmp_path / "x.zip")
    assert stored(store) == {}


@pytest.mark.parametrize("capture_id", ["../x", "UPPER", "a", "x" * 65, "a/b", ""])
def test_a_wrong_id_is_refused(store: ArtifactStore, capture_id: str) -> None:
    with pytest.raises(InputError, match="use 3 to 64 characters"):
        find_capture(store, capture_id)


def test_captures_are_listed_by_day(store: ArtifactStore) -> None:
    for key in ("2026/11/20/one", "2026/11/20/two", "2026/11/21/three", "2025/12/31/four"):
        store.put_bytes(f"captures/{key}/capture.json", b"{}")
    store.put_bytes("captures/2026/11/20/uncommitted/frames.jsonl", b"")
    store.put_bytes("captures/2026/1/2/short/capture.json", b"{}")
    store.put_bytes("captures/2026/13/99/stray/capture.json", b"{}")
    store.put_bytes("captures/notes/x/y/z/capture.json", b"{}")
    assert [c.capture_id for c in list_captures(store)] == ["four", "one", "two", "three"]
    november = list_captures(store, date(2026, 11, 20), date(2026, 11, 20))
    assert [c.capture_id for c in november] == ["one", "two"]
    assert list_captures(store, date(2026, 11, 22)) == []


def upload(store: ArtifactStore, capture: Path) -> StoredCapture:
    """Put a capture there as a phone does, unchecked."""
    for name, data in contents(capture).items():
        store.put_bytes(f"{FOLDER}/{name}", data)
    return find_capture(store, "test-capture")


def test_a_download_gives_every_reason(store: ArtifactStore, make_capture: MakeCapture, tmp_path: Path) -> None:
    found = upload(store, make_capture())
    store.delete(f"{FOLDER}/images/000001.jpg")
    store.put_bytes(f"{FOLDER}/images/000002.jpg", b"short")
    with pytest.raises(CaptureError) as refusal:
        download_capture(store, found, tmp_path / "back")
    assert len(refusal.value.reasons) == 2
    assert "images/000001.jpg: is missing" in refusal.value.reasons[0]
    assert "images/000002.jpg: has 5 bytes" in refusal.value.reasons[1]
    assert not (tmp_path / "back").exists()


def test_bytes_that_differ_are_refused(store: ArtifactStore, make_capture: MakeCapture, tmp_path: Path) -> None:
    found = upload(store, make_capture())
    key = f"{FOLDER}/images/000002.jpg"
    store.put_bytes(key, store.read_bytes(key)[:-1] + b"?")
    with pytest.raises(CaptureError, match=r"images/000002\.jpg is damaged.*upload the capture again"):
        download_capture(store, found, tmp_path / "back")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"files": [{"name": "../evil", "size": 1, "sha256": "0" * 64}]}, "unsafe key"),
        ({"files": [{"name": "images/x.sh", "size": 1, "sha256": "0" * 64}]}, "not a file of a bundle"),
        ({"files": [{"name": "images/1.jpg", "size": 5 << 30, "sha256": "0" * 64}]}, "5368709120 bytes in all"),
        ({"files": [{"name": "images/1.jpg", "size": -1, "sha256": "0" * 64}]}, "greater than or equal to 0"),
        ({"files": "all"}, "files"),
        ({"capture_id": "another"}, "capture_id is 'another'"),
        ({"recorded_at": "yesterday"}, "recorded_at"),
    ],
)
def test_a_hostile_document_is_refused(
    store: ArtifactStore, make_capture: MakeCapture, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    found = upload(store, rewrite(make_capture(), **change))
    with pytest.raises(CaptureError, match=reason):
        download_capture(store, found, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert not (tmp_path / "evil").exists()

from pathlib import Path

import pytest

from scan2twin.store import open_store


def test_an_address_opens_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("some/folder").uri == str(tmp_path / "some/folder")
    assert open_store("file:///some/with%20space").uri == "/some/with space"
    monkeypatch.setenv("HOME", "/home/me")
    assert open_store("~/store").uri == "/home/me/store"


def test_the_default_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCAN2TWIN_STORE", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert open_store().uri == "/home/me/.local/share/scan2twin/store"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert open_store().uri == "/data/scan2twin/store"
    monkeypatch.setenv("SCAN2TWIN_STORE", "/elsewhere")
    assert open_store().uri == "/elsewhere"


def test_opening_writes_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    assert not store.exists("models/x")
    assert list(store.list_objects("models")) == []
    assert not (tmp_path / "store").exists()

"""What every store promises, asked of each of them."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scan2twin.errors import InputError, NotFoundError, StoreError
from scan2twin.store import ArtifactStore
from scan2twin.store.base import check_key
from scan2twin.store.transfer import parallel


def test_bytes_come_back_and_are_replaced(store: ArtifactStore) -> None:
    assert store.put_bytes("models/mug/latest.json", b"one")
    assert store.read_bytes("models/mug/latest.json") == b"one"
    assert store.put_bytes("models/mug/latest.json", b"the second")
    assert store.read_bytes("models/mug/latest.json") == b"the second"


@pytest.mark.parametrize("size", [0, 1, 5_000_000, 40_000_000])  # the last goes up in three parts on S3
def test_files_come_back_with_their_hash(store: ArtifactStore, tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(251)) * (size // 251) + b"x" * (size % 251))
    expected = hashlib.sha256(source.read_bytes()).hexdigest()
    assert store.put_file("artifacts/mug/file.bin", source) == expected
    assert store.get_file("artifacts/mug/file.bin", target) == expected
    assert target.read_bytes() == source.read_bytes()
    assert [stored.size for stored in store.list_objects("artifacts/mug")] == [size]


def test_absent_objects(store: ArtifactStore, tmp_path: Path) -> None:
    store.put_bytes("artifacts/mug/there", b"")
    for key in ("artifacts/mug/not-there", "artifacts/mug", "nobucket/at-all"):
        assert not store.exists(key)
        with pytest.raises(NotFoundError, match=key):
            store.read_bytes(key)
        with pytest.raises(NotFoundError, match=key):
            store.get_file(key, tmp_path / "target")
        store.delete(key)
    assert store.exists("artifacts/mug/there")
    assert list(store.list_objects("nobucket/at-all")) == []
    assert store.list_folders("nobucket") == []


def test_if_absent_keeps_what_is_there(store: ArtifactStore) -> None:
    assert store.put_bytes("artifacts/mug/manifest.json", b"first", if_absent=True)
    assert not store.put_bytes("artifacts/mug/manifest.json", b"second", if_absent=True)
    assert store.read_bytes("artifacts/mug/manifest.json") == b"first"
    store.delete("artifacts/mug/manifest.json")
    assert store.put_bytes("artifacts/mug/manifest.json", b"third", if_absent=True)


def test_if_absent_has_one_winner_among_many(store: ArtifactStore) -> None:
    for round_ in range(3):
        key = f"artifacts/race/{round_}"
        with ThreadPoolExecutor(4) as pool:
            won = list(pool.map(lambda i, k=key: store.put_bytes(k, b"%d" % i, if_absent=True), range(4)))
        assert sum(won) == 1
        assert store.read_bytes(key) == b"%d" % won.index(True)


def test_a_folder_ends_where_a_part_ends(store: ArtifactStore) -> None:
    for key in ("captures/2026/mug/a", "captures/2026/mug/b/c", "captures/2026/mug2/a", "captures/2027/x"):
        store.put_bytes(key, b"")
    assert [s.key for s in store.list_objects("captures/2026/mug")] == ["captures/2026/mug/a", "captures/2026/mug/b/c"]
    assert list(store.list_objects("captures/2026/mu")) == []
    assert store.list_folders("captures") == ["2026", "2027"]
    assert store.list_folders("captures/2026") == ["mug", "mug2"]
    assert store.list_folders("captures/2026/mug") == ["b"]


def test_lists_1200_keys_in_order(store: ArtifactStore) -> None:
    keys = sorted(f"artifacts/many/{'ab'[i % 2]}/{i:04d}" for i in range(1200))
    parallel(lambda key: store.put_bytes(key, b"12"), keys)
    listed = list(store.list_objects("artifacts/many"))
    assert [stored.key for stored in listed] == keys
    assert {stored.size for stored in listed} == {2}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "put_if_absent", "delete"]), st.sampled_from("abc"), st.binary(max_size=20)),
        max_size=12,
    )
)
def test_behaves_like_a_dictionary(store: ArtifactStore, steps: list[tuple[str, str, bytes]]) -> None:
    model: dict[str, bytes] = {}
    for stored in list(store.list_objects("artifacts/dictionary")):
        store.delete(stored.key)
    for action, name, data in steps:
        key = f"artifacts/dictionary/{name}/{name}"
        if action == "delete":
            store.delete(key)
            model.pop(key, None)
        elif store.put_bytes(key, data, if_absent=action == "put_if_absent"):
            model[key] = data
        else:
            assert key in model
    assert {s.key: store.read_bytes(s.key) for s in store.list_objects("artifacts/dictionary")} == model


HOSTILE = ["", "/etc/passwd", "captures/../../etc/passwd", "captures/./x", "captures//x", "captures/x/", "captures\\x",
           "captures/.hidden", "captures/a\nb", "captures/a\0b", "captures/nul:x", "captures/ü", "captures/a ",
           "captures/" + "x" * 201, "captures/" + "x/" * 600 + "x"]  # fmt: skip


@pytest.mark.parametrize("key", HOSTILE)
def test_hostile_keys_are_refused(store: ArtifactStore, tmp_path: Path, key: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    for action in (
        lambda: store.put_bytes(key, b""),
        lambda: store.put_file(key, Path(__file__)),
        lambda: store.read_bytes(key),
        lambda: store.get_file(key, tmp_path / "x"),
        lambda: store.exists(key),
        lambda: store.delete(key),
        lambda: list(store.list_objects(key)),
        lambda: store.list_folders(key),
    ):
        with pytest.raises(InputError, match="unsafe key"):
            action()
    assert sorted(tmp_path.rglob("*")) == before


@given(st.text(max_size=60))
def test_an_accepted_key_stays_below_any_root(key: str) -> None:
    try:
        check_key(key)
    except InputError:
        return
    path = Path("/root") / key
    assert not key.startswith("/")
    assert path.resolve().is_relative_to("/root")
    assert path.as_posix() == f"/root/{key}"


def test_a_missing_source_file_is_an_error_of_its_own(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no-such-file"):
        store.put_file("artifacts/x/y", tmp_path / "no-such-file")
    assert not store.exists("artifacts/x/y")

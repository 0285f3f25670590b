"""The ingest API: what a paired phone can do, and what nobody can."""

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st
from ingest_server import (
    HTTP,
    KEY,
    Bundle,
    Server,
    announcement,
    put,
    read_bundle,
    sha256,
    without_document,
)

from plugins import uploads
from plugins.limits import MAX_CLIENTS, Rate, RateLimiter
from plugins.tokens import TokenError, issue, signing_key, verify
from plugins.uploads import MAX_BATCH, MAX_IMAGE_BYTES
from scan2twin.capture.models import MAX_DOCUMENT_BYTES
from scan2twin.store.captures import download_capture, find_capture


@pytest.fixture
def bundle(make_capture: Callable[..., Path]) -> Bundle:
    return read_bundle(make_capture(frames=3))


def capture_id_of(bundle: Bundle) -> str:
    return str(json.loads(bundle["capture.json"])["capture_id"])


def created(server: Server, bundle: Bundle, user: str = "ann") -> str:
    """Pair a phone, announce the capture and return the token."""
    token = server.pair(user)
    status, answer = server.call("POST", "/captures", announcement(bundle), token=token)
    assert status == 201, answer
    return token


def changed(bundle: Bundle, **fields: Any) -> Bundle:
    document = json.loads(bundle["capture.json"]) | fields
    return bundle | {"capture.json": json.dumps(document).encode()}


def test_an_upload_becomes_a_capture_and_starts_its_run_once(server: Server, bundle: Bundle, tmp_path: Path) -> None:
    token, id_ = created(server, bundle), capture_id_of(bundle)
    server.send(token, id_, without_document(bundle))
    assert server.call("GET", f"/captures/{id_}", token=token) == (
        200,
        {
            "capture_id": id_,
            "state": "uploading",
            "files": 4,
            "bytes": sum(map(len, without_document(bundle).values())),
        },
    )
    for _ in range(2):  # an answer that was lost is asked for again
        assert server.complete(token, bundle) == (200, {"run_id": f"upload-{id_}", "damaged": []})
    assert server.started == [(id_, "ann")] * 2  # the host makes one run of these
    assert server.call("GET", f"/captures/{id_}", token=token)[1]["state"] == "complete"
    download_capture(server.store, find_capture(server.store, id_), tmp_path / "capture")
    assert {p.relative_to(tmp_path / "capture").as_posix() for p in (tmp_path / "capture").rglob("*.*")} == set(bundle)


def test_an_upload_goes_on_where_it_was_cut_under_a_new_pairing(server: Server, bundle: Bundle) -> None:
    token, id_ = created(server, bundle), capture_id_of(bundle)
    files = without_document(bundle)
    first = dict(list(files.items())[:2])
    server.send(token, id_, first)
    assert server.complete(token, bundle) == (200, {"run_id": None, "damaged": sorted(files.keys() - first.keys())})
    again = created(server, bundle)
    server.send(again, id_, {name: data for name, data in files.items() if name not in first})
    assert server.complete(again, bundle)[1]["run_id"] == f"upload-{id_}"


def test_damaged_files_are_found_deleted_and_taken_again(server: Server, bundle: Bundle) -> None:
    token, id_ = created(server, bundle), capture_id_of(bundle)
    name = "images/000001.jpg"
    swapped = bundle[name][:-1] + bytes([bundle[name][-1] ^ 1])
    server.send(token, id_, without_document(bundle) | {name: swapped})
    assert server.complete(token, bundle) == (200, {"run_id": None, "damaged": [name]})
    assert server.started == []
    server.send(token, id_, {name: bundle[name]})
    assert server.complete(token, bundle)[1]["run_id"] == f"upload-{id_}"


def test_the_store_takes_each_file_once_and_in_its_size_only(server: Server, bundle: Bundle) -> None:
    token, id_ = created(server, bundle), capture_id_of(bundle)
    name = "images/000000.jpg"
    upload = server.sign(token, id_, {name: bundle[name]})[1]["uploads"][0]
    assert put(upload, bundle[name] + b"more") == 403
    assert put(upload, bundle[name][:-1]) == 403
    assert put(upload | {"headers": {}}, bundle[name]) == 403  # without If-None-Match it would replace a file
    assert put(upload | {"url": upload["url"].replace("000000.jpg", "000009.jpg")}, bundle[name]) == 403
    assert put(upload | {"url": upload["url"].replace(id_, "another-capture")}, bundle[name]) == 403
    assert put(upload, bundle[name]) == 200
    assert put(upload, bytes(len(bundle[name]))) == 412
    key = f"{find_folder(server, id_)}/{name}"
    assert sha256(server.store.read_bytes(key)) == sha256(bundle[name])


def find_folder(server: Server, capture_id: str) -> str:
    keys = [stored.key for stored in server.store.list_objects("captures") if f"/{capture_id}/" in stored.key]
    return keys[0].partition(capture_id)[0] + capture_id


def test_nothing_can_be_added_to_a_complete_capture(server: Server, bundle: Bundle) -> None:
    token, id_ = created(server, bundle), capture_id_of(bundle)
    server.send(token, id_, without_document(bundle))
    assert server.complete(token, bundle)[0] == 200
    assert server.sign(token, id_, {"images/000009.jpg": b"x"})[0] == 409
    assert server.complete(token, changed(bundle, name="Another"))[0] == 409
    assert server.call("POST", "/captures", announcement(bundle), token=server.pair("eve"))[0] == 409


def test_files_that_the_capture_does_not_list_are_deleted(server: Server, bundle: Bundle) -> None:
    token, id_ = created(server, bundle), capture_id_of(bundle)
    server.send(token, id_, without_document(bundle) | {"images/extra.jpg": b"\xff\xd8\xffextra"})
    assert server.complete(token, bundle)[1]["damaged"] == []
    assert not server.store.exists(f"{find_folder(server, id_)}/images/extra.jpg")


def test_two_phones_at_once(server: Server, make_capture: Callable[..., Path]) -> None:
    bundles = [read_bundle(make_capture(f"phone-{i}", frames=3)) for i in range(2)]
    answers: dict[str, Any] = {}

    def phone(bundle: Bundle, user: str) -> None:
        token, id_ = created(server, bundle, user), capture_id_of(bundle)
        server.send(token, id_, without_document(bundle))
        answers[user] = server.complete(token, bundle)

    threads = [threading.Thread(target=phone, args=pair) for pair in zip(bundles, ("ann", "bob"), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[user][1]["run_id"] for user in ("ann", "bob")] == [f"upload-{capture_id_of(b)}" for b in bundles]


class TestTokens:
    def test_every_route_wants_one(self, server: Server) -> None:
        routes = [route for route in server.app.routes if isinstance(route, APIRoute)]
        assert len(routes) >= 7
        for route in routes:
            path = route.path
            path = (
                path.replace("{pairing_id}", "0" * 32)
                .replace("{capture_id}", "some-capture")
                .replace("{run_id:path}", "some/run")
            )
            for method in route.methods:
                assert server.call(method, path, {}, root="")[0] == 401, (method, path)
                assert server.call(method, path, {}, token="forged", root="")[0] == 401, (method, path)

    def test_a_user_who_may_start_no_runs_pairs_no_phone(self, server: Server) -> None:
        answer = HTTP.request(
            "POST", f"{server.url}/api/pairings", body=b"{}",
            headers={"Authorization": "Basic YW5uOndyb25n", "Content-Type": "application/json"},
        )  # fmt: skip
        assert answer.status == 403

    def test_a_form_of_another_site_pairs_no_phone(self, server: Server) -> None:
        answer = HTTP.request(
            "POST", f"{server.url}/api/pairings", body=b"{}",
            headers={"Authorization": "Basic YW5uOnJpZ2h0", "Content-Type": "text/plain"},
        )  # fmt: skip
        assert answer.status == 422

    @pytest.mark.parametrize(
        ("key", "change"),
        [
            (b"another key of the same length!!", {}),
            (KEY, {"exp": datetime.now(UTC) - timedelta(seconds=5)}),
            (KEY, {"aud": "another-service"}),
            (KEY, {"jti": None}),
            (KEY, {"exp": None}),
        ],
    )
    def test_wrong_ones_are_refused(self, server: Server, bundle: Bundle, key: bytes, change: dict[str, Any]) -> None:
        claims = {"jti": "0" * 32, "sub": "ann", "exp": datetime.now(UTC) + timedelta(hours=1)}
        claims |= {"aud": "scan2twin-upload"} | change
        token = jwt.encode({name: value for name, value in claims.items() if value is not None}, key, "HS256")
        status, answer = server.call("POST", "/captures", announcement(bundle), token=token)
        assert status == 401
        assert "scan a new QR code" in answer["detail"]

    def test_unsigned_ones_are_refused(self) -> None:
        claims = {"jti": "0", "sub": "ann", "exp": datetime.now(UTC) + timedelta(hours=1), "aud": "scan2twin-upload"}
        with pytest.raises(TokenError):
            verify(jwt.encode(claims, None, "none"), KEY)

    @given(st.binary(min_size=1, max_size=300), st.integers(0, 299), st.integers(1, 255))
    def test_no_change_survives(self, noise: bytes, place: int, flip: int) -> None:
        pairing, token = issue("ann", KEY)
        assert verify(token, KEY) == pairing
        damaged = bytearray(token.encode())
        place %= len(damaged) - 1  # the last character holds bits that mean nothing
        damaged[place] ^= flip
        for wrong in (damaged.decode(errors="replace"), noise.decode(errors="replace")):
            with pytest.raises(TokenError):
                verify(wrong, KEY)

    def test_another_secret_makes_another_key(self) -> None:
        assert signing_key("a") != signing_key("b") != b"b"

    def test_one_is_for_one_capture(self, server: Server, make_capture: Callable[..., Path]) -> None:
        one, two = (read_bundle(make_capture(name, frames=3)) for name in ("one", "two"))
        token, other = created(server, one), created(server, two)
        assert server.call("POST", "/captures", announcement(two), token=token)[0] == 403
        assert server.sign(token, capture_id_of(two), {"images/000000.jpg": b"x"})[0] == 403
        assert server.complete(token, two)[0] == 403
        assert server.call("GET", f"/captures/{capture_id_of(two)}", token=token)[0] == 403
        assert server.sign(other, capture_id_of(two), {"images/000000.jpg": b"x"})[0] == 200

    def test_another_user_does_not_get_into_a_capture(self, server: Server, bundle: Bundle) -> None:
        created(server, bundle)
        token = server.pair("eve")
        assert server.call("POST", "/captures", announcement(bundle), token=token)[0] == 409

    def test_one_that_is_revoked_ends_at_once(self, server: Server, bundle: Bundle) -> None:
        _, made = server.call("POST", "/pairings", {}, user="ann")
        token = made["link"].partition("#pair=")[2]
        assert server.call("GET", f"/pairings/{made['id']}", user="ann")[1]["state"] == "waiting"
        assert server.call("POST", "/captures", announcement(bundle), token=token)[0] == 201
        assert server.call("GET", f"/pairings/{made['id']}", user="ann")[1] == {
            "state": "uploading",
            "capture_id": capture_id_of(bundle),
        }
        assert server.call("DELETE", f"/pairings/{made['id']}", user="ann")[0] == 204
        assert server.sign(token, capture_id_of(bundle), {"images/000000.jpg": b"x"})[0] == 401
        assert server.call("GET", f"/pairings/{made['id']}", user="ann")[1]["state"] == "revoked"

    def test_an_upload_does_not_take_the_id_of_a_capture_that_came_another_way(
        self, server: Server, bundle: Bundle
    ) -> None:
        key = f"captures/2020/01/02/{capture_id_of(bundle)}/capture.json"
        server.store.put_bytes(key, b"{}")
        assert server.call("POST", "/captures", announcement(bundle), token=server.pair())[0] == 409


class TestRefusals:
    @pytest.mark.parametrize(
        "name",
        [
            "../other/images/0.jpg", "images/../../x.jpg", "/etc/passwd", "images/a/b.jpg", "images\\a.jpg",
            "C:/a.jpg", "images/.hidden.jpg", "images/a.jpg\n", "images/a.zip", "capture.json", "images/a.svg",
            "masks/a.png", "images/%2e%2e.jpg", "images/ä.jpg", "",
        ],
    )  # fmt: skip
    def test_names_that_are_no_frames(self, server: Server, bundle: Bundle, name: str) -> None:
        token = created(server, bundle)
        assert server.sign(token, capture_id_of(bundle), {name: b"x"})[0] in (400, 422)

    def test_too_much(self, server: Server, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        token, id_ = created(server, bundle), capture_id_of(bundle)
        file = {"name": "images/0.jpg", "size": MAX_IMAGE_BYTES + 1, "sha256": "0" * 64}
        assert server.call("POST", f"/captures/{id_}/presign", {"files": [file]}, token=token)[0] == 422
        assert server.sign(token, id_, {f"images/{i}.jpg": b"x" for i in range(MAX_BATCH + 1)})[0] == 422
        assert server.sign(token, id_, {"images/a.jpg": b"x", "images/A.jpg": b"x"})[0] == 400
        server.send(token, id_, {"images/a.jpg": b"x" * 600})
        monkeypatch.setattr(uploads, "MAX_UNPACKED_BYTES", 1000)
        assert server.sign(token, id_, {"images/b.jpg": b"x" * 401})[0] == 413
        assert server.sign(token, id_, {"images/a.jpg": b"x" * 1000})[0] == 200  # in place of what is there
        monkeypatch.setattr(uploads, "MAX_FRAMES", 1)
        assert server.sign(token, id_, {"images/b.jpg": b"x", "images/c.jpg": b"x"})[0] == 413

    def test_large_bodies_are_not_read(self, server: Server, bundle: Bundle) -> None:
        token, id_ = created(server, bundle), capture_id_of(bundle)
        url, auth = f"{server.url}/api/captures/{id_}/complete", {"Authorization": f"Bearer {token}"}
        declared = HTTP.request("POST", url, body=bytes(MAX_DOCUMENT_BYTES + 1), headers=auth)
        assert declared.status == 413

        def chunks() -> Iterator[bytes]:
            yield from (bytes(1 << 20) for _ in range((MAX_DOCUMENT_BYTES >> 20) + 2))

        chunked = HTTP.request("POST", url, body=chunks(), headers=auth, chunked=True)
        assert chunked.status == 413

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"version": "9.9"}, "version"),
            ({"frame_count": 7}, "frame_count"),
            ({"capture_id": "another"}, "another"),
            ({"surprise": 1}, "surprise"),
        ],
    )
    def test_documents_that_break_the_format(
        self, server: Server, bundle: Bundle, fields: dict[str, Any], reason: str
    ) -> None:
        token, id_ = created(server, bundle), capture_id_of(bundle)
        server.send(token, id_, without_document(bundle))
        body = changed(bundle, **fields)["capture.json"]
        status, answer = server.call("POST", f"/captures/{id_}/complete", body, token=token)
        assert status == 400
        assert reason in answer["detail"]
        assert server.started == []
        assert not server.store.exists(f"{find_folder(server, id_)}/capture.json")

    @pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"capture_id": NaN}'])
    def test_documents_that_are_none(self, server: Server, bundle: Bundle, body: bytes) -> None:
        token, id_ = created(server, bundle), capture_id_of(bundle)
        assert server.call("POST", f"/captures/{id_}/complete", body, token=token)[0] == 400

    @pytest.mark.parametrize("name", ["../secrets", "images/../../capture.json", "masks/0.png"])
    def test_lists_with_tricks(self, server: Server, bundle: Bundle, name: str) -> None:
        token = created(server, bundle)
        files = json.loads(bundle["capture.json"])["files"]
        tricked = changed(bundle, files=[*files, {"name": name, "size": 1, "sha256": "0" * 64}])
        assert server.complete(token, tricked)[0] == 400

    def test_files_that_are_no_images(self, server: Server, bundle: Bundle) -> None:
        name, script = "images/000000.jpg", b"<script>alert(1)</script>"
        files = json.loads(bundle["capture.json"])["files"]
        entry = {"name": name, "size": len(script), "sha256": sha256(script)}
        swapped = changed(bundle, files=[entry if file["name"] == name else file for file in files]) | {name: script}
        token, id_ = created(server, swapped), capture_id_of(swapped)
        server.send(token, id_, without_document(swapped))
        status, answer = server.complete(token, swapped)
        assert (status, answer["detail"]) == (400, f"{name}: not a JPEG or PNG image")

    @pytest.mark.parametrize("when", ["1999-01-01T00:00:00Z", "2199-01-01T00:00:00Z"])
    def test_days_that_cannot_be(self, server: Server, bundle: Bundle, when: str) -> None:
        announced = announcement(bundle) | {"recorded_at": when}
        status, answer = server.call("POST", "/captures", announced, token=server.pair())
        assert status == 400
        assert "clock" in answer["detail"]


class TestRates:
    def test_bursts_are_allowed_and_then_a_steady_rate(self) -> None:
        now = [0.0]
        limiter = RateLimiter(Rate(burst=3, per_second=2), clock=lambda: now[0])
        assert [limiter.wait_s("a") for _ in range(4)] == [0, 0, 0, 0.5]
        assert limiter.wait_s("b") == 0  # each client has its own
        now[0] = 0.5
        assert [limiter.wait_s("a"), limiter.wait_s("a")] == [0, 0.5]

    def test_memory_is_bounded(self) -> None:
        limiter = RateLimiter(Rate(burst=1, per_second=1), clock=lambda: 0.0)
        for i in range(MAX_CLIENTS + 10):
            limiter.wait_s(str(i))
        assert len(limiter._buckets) == MAX_CLIENTS

    def test_whoever_guesses_tokens_has_to_wait(self, server: Server, bundle: Bundle) -> None:
        answers = [server.call("GET", "/captures/some", token=f"guess-{i}")[0] for i in range(25)]
        assert answers[:20] == [401] * 20
        assert set(answers[20:]) == {429}
        created(server, bundle)  # who has a right is not held up

    def test_a_phone_that_asks_without_end_has_to_wait(self, server: Server, bundle: Bundle) -> None:
        token = created(server, bundle)
        answers = [server.call("GET", f"/captures/{capture_id_of(bundle)}", token=token)[0] for _ in range(100)]
        assert {200, 429} == set(answers)


def test_a_store_that_is_away_is_a_reason_to_wait(server: Server, bundle: Bundle, s3_server: Any) -> None:
    token = created(server, bundle)
    s3_server.stop()
    try:
        status, _ = server.call("GET", f"/captures/{capture_id_of(bundle)}", token=token)
        assert status == 503
    finally:
        s3_server.start()

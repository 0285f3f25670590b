"""The reader against right, broken and hostile bundles; the writer and the published JSON Schemas."""

import hashlib
import io
import json
import os
import re
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scan2twin.capture import reader
from scan2twin.capture.models import MAX_FRAMES, Anchor, CaptureHeader, Pose, TrackedAnchor
from scan2twin.capture.names import name_fault
from scan2twin.capture.reader import check_bundle, read_capture, unpack
from scan2twin.capture.schema import FOLDER, json_schemas, schema_text
from scan2twin.capture.writer import write_capture
from scan2twin.errors import CaptureError

Edit = Callable[[Any], None]
STILL = {"p": [0.0, 0.0, 0.0], "q": [0.0, 0.0, 0.0, 1.0]}  # a pose
AT_A9 = STILL | {"id": "a9", "tracked": True}


def edit_document(folder: Path, edit: Edit) -> None:
    document = json.loads((folder / "capture.json").read_text())
    edit(document)
    (folder / "capture.json").write_text(json.dumps(document))


def edit_frames(folder: Path, edit: Edit) -> None:
    """Change the list of frames, and list frames.jsonl with its new size and hash."""
    lines = [json.loads(line) for line in (folder / "frames.jsonl").read_text().splitlines()]
    edit(lines)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "frames.jsonl").write_text(text)

    def relist(document: Any) -> None:
        document["files"][0].update(size=len(text), sha256=hashlib.sha256(text.encode()).hexdigest())

    edit_document(folder, relist)


def set_at(*path: Any, value: Any) -> Edit:
    def edit(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return edit


def delete_at(*path: Any) -> Edit:
    def edit(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return edit


def test_a_written_bundle_is_read_back_whole(make_capture):
    folder = make_capture(frames=4)
    assert check_bundle(folder) == []
    capture = read_capture(folder)
    assert [frame.i for frame in capture.frames] == [0, 1, 2, 3]
    assert capture.document.frame_count == 4
    assert {file.name for file in capture.document.files} == {"frames.jsonl"} | {f.file for f in capture.frames}


def test_committed_sample_of_a_phone_capture_is_whole():
    assert check_bundle(Path(__file__).parents[1] / "data/spot-capture/capture") == []


def test_rasters_follow_their_frame(make_capture):
    folder = make_capture()
    (folder / "masks").mkdir()
    (folder / "masks/000002.png").write_bytes(b"png")
    capture = read_capture(folder)
    write_capture(folder, CaptureHeader(**{k: getattr(capture.document, k) for k in CaptureHeader.model_fields}),
                  capture.frames)  # fmt: skip
    capture = read_capture(folder)
    assert capture.raster("masks", capture.frames[2]) == folder / "masks/000002.png"
    assert capture.raster("masks", capture.frames[3]) is None
    assert capture.raster("depth", capture.frames[2]) is None


def test_the_writer_refuses_what_the_reader_would(make_capture):
    folder = make_capture(frames=4)
    capture = read_capture(folder)
    with pytest.raises(CaptureError, match=r"line 2: i: 2 after 3"):
        write_capture(folder, capture.document, list(reversed(capture.frames))[:2])
    assert not (folder / "capture.json").exists()


class TestVersions:
    def test_what_1_0_can_say_is_written_as_1_0(self, make_capture):
        folder = make_capture()
        assert read_capture(folder).document.version == "1.0"
        keys = json.loads((folder / "frames.jsonl").read_text().splitlines()[0]).keys()
        assert not keys & {"support", "pose_t"}

    def test_support_anchors_and_pose_times_make_it_1_1(self, make_capture):
        folder = make_capture()
        capture = read_capture(folder)
        second = Anchor(id="a1", role="support", pose_first=Pose(**STILL), pose_last=Pose(**STILL))
        header = capture.document.model_copy(update={"anchors": [*capture.document.anchors, second]})
        frames = [
            frame.model_copy(
                update={"pose_t": frame.t - 0.01, "support": [TrackedAnchor(id="a1", tracked=True, **STILL)]}
            )
            for frame in capture.frames
        ]
        assert write_capture(folder, header, frames).version == "1.1"
        assert check_bundle(folder) == []
        assert read_capture(folder).frames == frames
        frame_schema = json_schemas()["frame.schema.json"]
        for line in (folder / "frames.jsonl").read_text().splitlines():
            jsonschema.validate(json.loads(line), frame_schema)


class TestSchemas:
    def test_the_published_files_are_current(self):
        for name, schema in json_schemas().items():
            assert (FOLDER / name).read_text() == schema_text(schema), "run python -m scan2twin.capture.schema"

    def test_they_accept_what_the_writer_writes(self, make_capture):
        folder = make_capture(frames=3)
        capture_schema, frame_schema = (json_schemas()[n] for n in ("capture.schema.json", "frame.schema.json"))
        jsonschema.validate(json.loads((folder / "capture.json").read_text()), capture_schema)
        for line in (folder / "frames.jsonl").read_text().splitlines():
            jsonschema.validate(json.loads(line), frame_schema)

    def test_they_refuse_a_wrong_convention(self, make_capture):
        document = json.loads((make_capture() / "capture.json").read_text())
        document["conventions"]["up"] = "+Z"
        with pytest.raises(jsonschema.ValidationError, match=r"\+Y"):
            jsonschema.validate(document, json_schemas()["capture.schema.json"])


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (set_at("schema", value="other"), r"capture\.json: schema: .*'scan2twin\.capture', got \"other\""),
        (set_at("version", value="2.0"), r"version: Input should be '1\.0' or '1\.1', got \"2\.0\""),
        (delete_at("conventions"), r"conventions: Field required; add it"),
        (set_at("conventions", "camera_axes", value="opencv"), r"conventions\.camera_axes: .*got \"opencv\""),
        (set_at("conventions", "quaternion", value="wxyz"), r"conventions\.quaternion: "),
        (set_at("capture_id", value="../../etc"), r"capture_id: .*got \"\.\./\.\./etc\""),
        (set_at("capture_id", value="ab"), r"capture_id: "),
        (set_at("recorded_at", value="2026-11-20T10:11:00+02:00"), r"recorded_at: time is not UTC"),
        (set_at("recorded_at", value="2026-11-20T10:11:00"), r"recorded_at: "),
        (set_at("recorded_at", value=1763633460), r"recorded_at: "),
        (set_at("object", "size", value=[0.1, 0.0, 0.1]), r"object\.size\.1: Input should be greater than 0"),
        (set_at("object", "center", value=[0.1, float("nan"), 0.1]), r"object\.center\.1: .*finite"),
        (set_at("anchors", 0, "pose_first", "q", value=[0, 0, 0, 0]), r"not unit: its norm is 0"),
        (set_at("anchors", 0, "role", value="king"), r"anchors\.0\.role: "),
        (set_at("reference_anchor", value="zz"), r"reference_anchor: 'zz' is not in anchors"),
        (set_at("frame_count", value=11), r"frame_count: is 11, but frames\.jsonl has 10 lines"),
        (set_at("frame_count", value="10"), r"frame_count: Input should be a valid integer"),
        (set_at("camera", value={"distortion": {"model": "opencv", "k": [0.1]}}), r"camera\.distortion: k has 1 coeff"),
        (set_at("camera", value={"distortion": {"model": "fov", "k": [4.0]}}), r"fov has one angle between 0 and π"),
        (set_at("camera", value={"distortion": {"model": "brown", "k": [0.1]}}), r"distortion\.model: "),
        (set_at("camera", value={"distortion": {"model": "fov", "k": [0.9]}}), r"only 1\.1 has the lens model"),
        (set_at("colour", value="red"), r"colour: .*remove it or check its spelling"),
        (set_at("files", 1, "sha256", value="00"), r"files\.1\.sha256: "),
        (set_at("files", 1, "sha256", value="0" * 64), r"images/000000\.jpg: SHA-256 is [0-9a-f]{64}, but"),
        (set_at("files", 1, "size", value=5), r"images/000000\.jpg: \d+ bytes, but capture\.json lists 5"),
        (set_at("files", 1, "size", value=5 * 2**30), r"over the limit of 4294967296 \(4 GiB\)"),
        (delete_at("files", 1), r"000000\.jpg is not in the list of capture\.json"),
        (delete_at("files", 0), r"files: frames\.jsonl is not listed"),
    ],
)  # fmt: skip
def test_faults_of_the_document(make_capture, edit, reason):
    folder = make_capture()
    edit_document(folder, edit)
    assert re.search(reason, "\n".join(check_bundle(folder))), check_bundle(folder)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (set_at(3, "pose_world", "q", value=[0, 0, 0, 0]), r"line 4: pose_world\.q: quaternion is not unit.* is 0"),
        (set_at(3, "pose_world", "q", value=[0, float("nan"), 0, 1]), r"line 4: pose_world\.q\.1: .*finite"),
        (set_at(3, "pose_world", "q", value=[0, 0, 0, 1.01]), r"line 4: pose_world\.q: quaternion is not unit.*1\.01"),
        (set_at(3, "pose_world", "q", value=[0, 0, 1]), r"line 4: pose_world\.q: "),
        (set_at(3, "pose_world", "p", value=[0, float("nan"), 0]), r"line 4: pose_world\.p\.1: .*finite"),
        (set_at(3, "pose_world", "p", value=[0, float("inf"), 0]), r"line 4: pose_world\.p\.1: .*finite"),
        (set_at(3, "pose_world", "p", value=[0, "1", 0]), r"line 4: pose_world\.p\.1: .*number"),
        (set_at(3, "anchor", "id", value="a1"), r"line 4: anchor\.id: is 'a1', but the reference anchor is 'a0'"),
        (set_at(3, "t", value=0.1), r"line 4: t: 0\.1 s after 1\.0 s; times never decrease"),
        (set_at(3, "t", value=-1), r"line 4: t: "),
        (set_at(3, "i", value=2), r"line 4: i: 2 after 2"),
        (set_at(3, "file", value="images/000002.jpg"), r"images/000002\.\* is the image of more than one frame"),
        (set_at(3, "file", value="../../etc/passwd"), r"line 4: file: path leaves the bundle"),
        (set_at(3, "file", value="masks/000003.png"), r"line 4: file: not an image"),
        (set_at(3, "intrinsics", "fx", value=0), r"line 4: intrinsics\.fx: Input should be greater than 0"),
        (set_at(3, "tracking", value="bad"), r"line 4: tracking: "),
        (set_at(3, "pose_world", value=None), r"line 4: pose_world, intrinsics: unknown, though other frames"),
        (set_at(3, "intrinsics", value=None), r"line 4: pose_world, intrinsics: unknown, though other frames"),
        (set_at(3, "pose_world", value=None), r"line 4: pose_world: unknown, but intrinsics or anchors are given"),
        (set_at(3, "pose_world", value=None), r"version: is 1\.0, but only 1\.1 has frames without `pose_world`"),
        (set_at(3, "pose_t", value=1.4), r"version: is 1\.0, but only 1\.1 has `pose_t`"),
        (set_at(3, "pose_t", value=0.9), r"line 4: pose_t: the pose is of 0\.9 s, after one of 1\.0 s"),
        (set_at(3, "pose_t", value=float("nan")), r"line 4: pose_t: .*finite"),
        (set_at(3, "support", value=[AT_A9]), r"support: 'a9' is not one of the anchors"),
        (set_at(3, "support", value=[AT_A9 | {"id": "a0"}]), r"support: 'a0' is not one of .* besides"),
        (set_at(3, "support", value=[AT_A9] * 2), r"support: anchor 'a9' stands twice"),
        (lambda lines: lines.pop(), r"images/000009\.jpg: belongs to no frame"),
        (lambda lines: lines.extend([lines[0]] * MAX_FRAMES), r"2010 lines, over the limit of 2000 frames"),
    ],
)  # fmt: skip
def test_faults_of_the_frames(make_capture, edit, reason):
    folder = make_capture()
    edit_frames(folder, edit)
    assert re.search(reason, "\n".join(check_bundle(folder))), check_bundle(folder)


def test_an_image_over_64_mp_is_refused_by_its_stated_size(make_capture):
    folder = make_capture()
    edit_frames(folder, lambda lines: lines[3].update(width=10_000, height=10_000))
    assert any("line 4: image of 10000 × 10000 pixels is over 64 MP" in reason for reason in check_bundle(folder))


def test_every_reason_is_given_not_only_the_first(make_capture):
    folder = make_capture()
    edit_frames(folder, lambda lines: (lines[1].update(tracking="?", t=-5), lines[5]["pose_world"].update(q=[0] * 4)))
    edit_document(folder, set_at("files", 3, "size", value=1))
    reasons = "\n".join(check_bundle(folder))
    for part in ("line 2: tracking", "line 2: t", "line 6: pose_world.q", "images/000002.jpg"):
        assert part in reasons
    with pytest.raises(CaptureError) as caught:
        read_capture(folder)
    assert len(caught.value.reasons) == 3  # the documents' own; file contents are check_bundle's
    assert caught.value.exit_code == 2


def test_cut_off_documents(make_capture):
    folder = make_capture()
    text = (folder / "frames.jsonl").read_bytes()
    (folder / "frames.jsonl").write_bytes(text[:-40])
    assert any("frames.jsonl: line 10: Invalid JSON" in reason for reason in check_bundle(folder))
    (folder / "capture.json").write_bytes((folder / "capture.json").read_bytes()[:100])
    assert "Invalid JSON" in check_bundle(folder)[0]
    (folder / "capture.json").unlink()
    assert "capture.json: missing" in check_bundle(folder)[0]


def test_a_document_too_large_is_not_parsed(make_capture, monkeypatch):
    folder = make_capture()
    monkeypatch.setattr(reader, "MAX_DOCUMENT_BYTES", 1000)
    assert check_bundle(folder) == ["capture.json: over the limit of 1000 bytes; it is not a capture's document"]


def test_a_hostile_document_does_not_make_a_million_reasons(make_capture):
    folder = make_capture()
    edit_document(folder, set_at("files", value=[{"name": "x"}] * 5000))
    reasons = check_bundle(folder)
    assert len(reasons) == reader.MAX_REASONS + 1
    assert "9800 more faults" in reasons[-1]


class TestFolder:
    def test_links_are_refused_and_not_followed(self, make_capture, tmp_path):
        folder = make_capture()
        secret = tmp_path / "secret.jpg"
        (folder / "images/000001.jpg").rename(secret)
        (folder / "images/000001.jpg").symlink_to(secret)
        reasons = "\n".join(check_bundle(folder))
        assert "'images/000001.jpg': is a link" in reasons

    def test_a_linked_folder_is_refused(self, make_capture):
        folder = make_capture()
        (folder / "images").rename(folder.parent / "elsewhere")
        (folder / "images").symlink_to(folder.parent / "elsewhere")
        reasons = "\n".join(check_bundle(folder))
        assert "'images': is a link" in reasons
        assert "'images/000000.jpg': listed in capture.json but not in the folder" in reasons

    def test_special_files_are_refused_and_not_opened(self, make_capture):
        folder = make_capture()
        (folder / "images/000001.jpg").unlink()
        os.mkfifo(folder / "images/000001.jpg")
        assert any("'images/000001.jpg': not a file or folder of a bundle" in r for r in check_bundle(folder))

    def test_unlisted_and_missing_files_are_named(self, make_capture):
        folder = make_capture()
        (folder / "images/000001.jpg").rename(folder / "images/extra.jpg")
        reasons = "\n".join(check_bundle(folder))
        assert "'images/extra.jpg': in the folder but not in the list" in reasons
        assert "'images/000001.jpg': listed in capture.json but not in the folder" in reasons

    def test_what_systems_leave_behind_is_ignored(self, make_capture):
        folder = make_capture()
        (folder / ".DS_Store").write_bytes(b"")
        (folder / "images/Thumbs.db").write_bytes(b"")
        assert check_bundle(folder) == []


def zipped(folder: Path, prefix: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


class TestUnpack:
    @pytest.mark.parametrize("prefix", ["", "my scan/"])
    def test_a_zip_is_the_same_as_its_folder(self, make_capture, tmp_path, prefix):
        folder = make_capture()
        unpack(zipped(folder, prefix), tmp_path / "unpacked")
        assert check_bundle(tmp_path / "unpacked") == []
        assert read_capture(tmp_path / "unpacked").document == read_capture(folder).document

    def test_litter_of_desktop_systems_is_left_out(self, make_capture, tmp_path):
        path = zipped(make_capture(), "scan/")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("__MACOSX/scan/._capture.json", b"x")
        unpack(path, tmp_path / "unpacked")
        assert check_bundle(tmp_path / "unpacked") == []

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("../evil.jpg", "leaves the bundle"),
            ("images/../../evil.jpg", "leaves the bundle"),
            ("/etc/evil.jpg", "absolute"),
            ("C:/evil.jpg", "drive letter"),
            ("images\\evil.jpg", "backslash"),
            ("images/a\nb.jpg", "control characters"),
            ("images/more.zip", "archives inside"),
            ("images/IMG.JPG", "not a file of a bundle"),
            ("images/00000A.jpg", "listed"),
            ("run.sh", "not a file of a bundle"),
            ("deep/", "not a folder of a bundle"),
        ],
    )
    def test_hostile_names(self, make_capture, tmp_path, name, reason):
        path = zipped(make_capture())
        with zipfile.ZipFile(path, "a") as archive:
            entry = zipfile.ZipInfo("placeholder")
            entry.filename = name  # past ZipInfo's own clean-up of names
            archive.writestr(entry, b"")
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(CaptureError, match=reason):
            unpack(path, tmp_path / "unpacked")
        assert sorted(tmp_path.rglob("*")) == before  # nothing is left, inside or outside

    def test_links(self, make_capture, tmp_path):
        path = zipped(make_capture())
        with zipfile.ZipFile(path, "a") as archive:
            entry = zipfile.ZipInfo("images/000099.jpg")
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, "/etc/passwd")
        with pytest.raises(CaptureError, match=r"'images/000099\.jpg': is a link or special file"):
            unpack(path, tmp_path / "unpacked")

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_duplicates_and_case_clashes(self, make_capture, tmp_path):
        path = zipped(make_capture())
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("images/000001.jpg", b"other")
            archive.writestr("images/a.jpg", b"")
            archive.writestr("images/A.jpg", b"")
        with pytest.raises(CaptureError) as caught:
            unpack(path, tmp_path / "unpacked")
        assert "'images/000001.jpg': listed 2 times" in str(caught.value)
        assert "'images/A.jpg': differs from 'images/a.jpg' in case only" in str(caught.value)

    def test_a_bomb_stops_at_the_size_its_document_lists(self, make_capture, tmp_path):
        folder = make_capture()
        listed = (folder / "images/000001.jpg").stat().st_size
        (folder / "images/000001.jpg").write_bytes(bytes(64 * 2**20))  # deflates to 64 KiB
        with pytest.raises(CaptureError, match=rf"unpacks to more than the {listed} bytes"):
            unpack(zipped(folder), tmp_path / "unpacked")
        assert not (tmp_path / "unpacked").exists()

    def test_headers_that_lie_about_sizes_are_not_believed(self, make_capture, tmp_path):
        folder = make_capture()
        (folder / "images/000001.jpg").write_bytes(bytes(2**20))
        path = zipped(folder)
        size = (2**20).to_bytes(4, "little")
        path.write_bytes(path.read_bytes().replace(size, (10).to_bytes(4, "little")))
        with pytest.raises(CaptureError):
            unpack(path, tmp_path / "unpacked")

    def test_a_document_that_lists_more_than_4_gib_is_refused_before_unpacking(self, make_capture, tmp_path):
        folder = make_capture()
        edit_document(folder, set_at("files", 1, "size", value=5 * 2**30))
        with pytest.raises(CaptureError, match=r"over the limit of 4294967296"):
            unpack(zipped(folder), tmp_path / "unpacked")

    def test_a_document_bomb(self, make_capture, tmp_path):
        folder = make_capture()
        (folder / "capture.json").write_bytes(b" " * (reader.MAX_DOCUMENT_BYTES + 1))
        with pytest.raises(CaptureError, match=r"capture\.json: unpacks to more than"):
            unpack(zipped(folder), tmp_path / "unpacked")

    @pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "empty"])
    def test_damaged_archives(self, make_capture, tmp_path, damage):
        path = zipped(make_capture(), method=zipfile.ZIP_STORED)
        raw = bytearray(path.read_bytes())
        if damage == "truncated":
            del raw[len(raw) // 2 :]
        elif damage == "flipped":
            raw[raw.index(b"\xff\xd8") + 500] ^= 0xFF
        else:
            raw = bytearray(b"not a zip" if damage == "text" else b"")
        path.write_bytes(raw)
        with pytest.raises(CaptureError, match="not a whole zip archive"):
            unpack(path, tmp_path / "unpacked")
        assert not (tmp_path / "unpacked").exists()

    def test_other_compression_and_a_missing_document(self, make_capture, tmp_path):
        folder = make_capture()
        with pytest.raises(CaptureError, match="compression method 14; only deflate and store"):
            unpack(zipped(folder, method=zipfile.ZIP_LZMA), tmp_path / "unpacked")
        (folder / "capture.json").unlink()
        with pytest.raises(CaptureError, match=r"capture\.json: not in the archive"):
            unpack(zipped(folder), tmp_path / "unpacked")


PARTS = ["images", "masks", "..", ".", "/", "\\", "a", "0", "C:", ".jpg", ".png", ".zip", "\n", "\0", "é", "-", "~"]


@given(st.lists(st.sampled_from(PARTS), max_size=8).map("".join) | st.sampled_from(PARTS).map("images/{}.jpg".format))
def test_only_safe_names_pass(name):
    if name_fault(name) is None:
        assert re.fullmatch(r"[A-Za-z0-9._/-]+", name)
        assert not name.startswith(("/", "."))
        assert ".." not in name.split("/")
        assert name.count("/") <= 1


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_document_parser(raw):
    document, faults = reader._parse(reader.CaptureDocument, raw, "capture.json:")
    assert (document is None) == bool(faults)


def test_zip_of_nothing(tmp_path):
    stream = io.BytesIO()
    zipfile.ZipFile(stream, "w").close()
    (tmp_path / "empty.zip").write_bytes(stream.getvalue())
    with pytest.raises(CaptureError, match=r"capture\.json: not in the archive"):
        unpack(tmp_path / "empty.zip", tmp_path / "unpacked")

"""Every importer on files written from its tool's documentation: where known points fall, and what is refused."""

import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scenes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scenes import COLMAP_LENS, POSES, WRITERS, Written, reprojected

from scan2twin import api
from scan2twin.capture.reader import Capture, check_bundle, is_bundle, read_capture
from scan2twin.errors import CaptureError, ResourceError
from scan2twin.importers import as_bundle, import_scan
from scan2twin.importers.photos import likeness
from scan2twin.store import open_store
from scan2twin.store.captures import find_capture, import_capture


def imported(written: Written, tmp_path: Path) -> Capture:
    import_scan(written.path, tmp_path / "bundle")
    assert check_bundle(tmp_path / "bundle") == []
    return read_capture(tmp_path / "bundle")


@pytest.mark.parametrize("kind", WRITERS)
def test_known_points_fall_on_the_same_pixels(kind: str, tmp_path: Path) -> None:
    written = WRITERS[kind](tmp_path / "scan")
    capture = imported(written, tmp_path)
    assert len(capture.frames) == len(POSES)
    assert np.abs(reprojected(capture) - written.pixels).max() < 1e-4
    up = np.mean([scenes.Rotation.from_quat(frame.pose_world.q).apply([0, 1, 0]) for frame in capture.frames], axis=0)
    assert up[1] / np.linalg.norm(up) > 0.99


@pytest.mark.parametrize("kind", ["Polycam", "Record3D", "Stray Scanner", "NeRFCapture"])
def test_worlds_with_y_up_are_taken_as_they_are(kind: str, tmp_path: Path) -> None:
    capture = imported(WRITERS[kind](tmp_path / "scan"), tmp_path)
    np.testing.assert_allclose([frame.pose_world.p for frame in capture.frames], POSES[:, :3, 3], atol=1e-9)
    assert capture.document.scale.metric == (kind != "NeRFCapture")


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("model", COLMAP_LENS)
def test_colmap_s_cameras_are_exact(model: str, binary: bool, tmp_path: Path) -> None:
    written = scenes.colmap(tmp_path / "scan", model, binary=binary)
    assert np.abs(reprojected(imported(written, tmp_path)) - written.pixels).max() < 1e-4


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    scan = scenes.nerfstudio(tmp_path / "scan").path
    warnings = import_scan(scan, tmp_path / "bundle").warnings
    assert warnings[0] == "1 of 9 photos are missing and left out: 'images/gone.jpg'"
    assert "the scan's unit is not known" in warnings[1]
    sized = import_scan(scan, tmp_path / "sized", metres_per_unit=0.25)
    capture = read_capture(tmp_path / "sized")
    assert len(sized.warnings) == 1
    assert capture.document.scale.metric
    np.testing.assert_allclose([f.pose_world.p for f in capture.frames], POSES[:, :3, 3] / 4, atol=1e-9)


def test_raw_polycam_is_taken_where_nothing_was_corrected(tmp_path: Path) -> None:
    written = scenes.polycam(tmp_path / "scan", prefix="")
    done = import_scan(written.path, tmp_path / "bundle")
    assert done.kind == "Polycam"
    assert "the phone's own" in done.warnings[0]


def test_long_recordings_are_thinned_evenly(tmp_path: Path) -> None:
    for kind in ("Record3D", "Stray Scanner"):
        import_scan(WRITERS[kind](tmp_path / kind).path, tmp_path / f"{kind}-bundle", max_frames=3)
        capture = read_capture(tmp_path / f"{kind}-bundle")
        assert [round(frame.t * 30) for frame in capture.frames] == [0, 4, 7]
        if kind == "Stray Scanner":  # the frames' greys say which they are
            greys = [np.asarray(Image.open(capture.root / frame.file)).mean() for frame in capture.frames]
            np.testing.assert_allclose(greys, [20, 120, 195], atol=8)


def test_photos_of_another_scale_keep_their_cameras(tmp_path: Path) -> None:
    """Half-size photos under a full-size model, as a user shrinks them."""
    written = scenes.colmap(tmp_path / "scan")
    for path in (written.path / "images").iterdir():
        with Image.open(path) as image:
            image.resize((32, 24)).save(path)
    capture = imported(written, tmp_path)
    assert np.abs(reprojected(capture) - written.pixels / 2).max() < 1e-4


def test_other_image_formats_and_turned_photos(tmp_path: Path) -> None:
    scan = scenes.colmap(tmp_path / "scan").path
    exif = Image.Exif()
    exif[0x0112] = 6
    scenes.photo(0).save(scan / "images/IMG_0.png", format="TIFF")
    scenes.photo(1).save(scan / "images/IMG_1.png", format="HEIF")
    scenes.photo(2).save(scan / "images/IMG_2.png", format="JPEG", exif=exif)
    import_scan(scan, tmp_path / "bundle")
    capture = read_capture(tmp_path / "bundle")
    assert [Path(frame.file).suffix for frame in capture.frames[:4]] == [".png", ".heic", ".jpg", ".png"]
    assert (capture.frames[2].width, capture.frames[2].height) == scenes.SIZE  # as stored


def document(scan: Path) -> Path:
    return scan / "transforms.json"


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_frame(scan: Path, **values: object) -> None:
    transforms = json.loads(document(scan).read_text())
    transforms["frames"][3] |= values
    document(scan).write_text(json.dumps(transforms))


def keyframe(scan: Path) -> Path:
    return sorted((scan / "keyframes/corrected_cameras").iterdir())[3]


def csv_line(scan: Path, line: str) -> None:
    lines = (scan / "odometry.csv").read_text().splitlines()
    (scan / "odometry.csv").write_text("\n".join([*lines[:4], line]))


TRANSFORMS = "transforms.json"
HARM = [
    (TRANSFORMS, lambda s: document(s).write_text('{"frames": ['),
     r"transforms\.json: not JSON .*cut off"),
    (TRANSFORMS, lambda s: document(s).write_text("[]"), r"transforms\.json: document: .*got '\[\]'"),
    (TRANSFORMS, lambda s: edit_json(document(s), fl_x=-3), r"fl_x: Input should be greater than 0"),
    (TRANSFORMS, lambda s: edit_json(document(s), fl_x=None), r"neither fl_x nor camera_angle_x"),
    (TRANSFORMS, lambda s: edit_json(document(s), camera_model="EQUIRECT"), r"'EQUIRECT' is not known"),
    (TRANSFORMS, lambda s: edit_frame(s, file_path="../../etc/passwd"),
     r"frames\.3: file_path: .*outside the scan"),
    (TRANSFORMS, lambda s: edit_frame(s, file_path="/etc/passwd"), r"file_path: '/etc/passwd' is outside"),
    (TRANSFORMS, lambda s: edit_frame(s, transform_matrix=[[1, 0], [0]]), r"frames\.3: transform_matrix: .*4×4"),
    (TRANSFORMS, lambda s: edit_frame(s, transform_matrix=np.diag([1.0, 1, -1, 1]).tolist()), r"mirrored"),
    (TRANSFORMS, lambda s: edit_frame(s, transform_matrix=np.diag([1.0, 2, 1, 1]).tolist()), r"not a rotation"),
    (TRANSFORMS, lambda s: shutil.rmtree(s / "images"), r"none of the 9 photos it names is there"),
    (TRANSFORMS, lambda s: scenes.photo(0).resize((50, 50)).save(s / "images/frame_00003.jpg"),
     r"frame_00003\.jpg: 50×50 pixels, but its camera is stated for 64×48"),
    (TRANSFORMS, lambda s: (s / "images/frame_00003.jpg").write_bytes(b"cut"),
     r"frame_00003\.jpg: not a readable"),
    ("Polycam", lambda s: edit_json(keyframe(s), fx="wide"), r"corrected_cameras/.*\.json: fx: "),
    ("Polycam", lambda s: keyframe(s).write_text("{"), r"\.json: not JSON"),
    ("Polycam", lambda s: shutil.rmtree(s / "keyframes/corrected_images"), r"none of the 8 photos"),
    ("Polycam", lambda s: shutil.rmtree(s / "keyframes/corrected_cameras"), r"no keyframes/cameras"),
    ("Stray Scanner", lambda s: (s / "rgb.mp4").unlink(), r"rgb\.mp4: missing"),
    ("Stray Scanner", lambda s: (s / "rgb.mp4").write_bytes(b"cut"), r"rgb\.mp4: not a video"),
    ("Stray Scanner", lambda s: (s / "camera_matrix.csv").write_text("1,2\n"), r"camera_matrix\.csv: .*3×3"),
    ("Stray Scanner", lambda s: csv_line(s, "100.5, 5, 0.1"), r"odometry\.csv: line 5: not 9 numbers; was it cut off"),
    ("Stray Scanner", lambda s: csv_line(s, "1, 5, 0, 0, 0, 0, 0, 0, 1"), r"line 5: timestamp goes back"),
    ("Stray Scanner", lambda s: csv_line(s, "101, 5, 0, 0, nan, 0, 0, 0, 1"), r"line 5: not finite"),
    ("Stray Scanner", lambda s: csv_line(s, "101, 3, 0, 0, 0, 0, 0, 0, 0"), r"line 5: the quaternion is zero"),
    ("Stray Scanner", lambda s: (s / "odometry.csv").write_text("time, x\n1, 2\n"), r"no column timestamp, frame"),
    ("COLMAP", lambda s: (s / "sparse/0/images.bin").unlink(), r"0/images\.bin: missing"),
    ("COLMAP", lambda s: shutil.rmtree(s / "images"), r"none of the model's 8 photos"),
    ("COLMAP", lambda s: (s / "sparse/0/cameras.bin").write_bytes(struct.pack("<QiiQQ", 1, 1, 14, 64, 48)),
     r"cameras\.bin: camera model number 14"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "harm", "said"), HARM)
def test_wrong_scans_are_refused_by_name(kind, harm, said, tmp_path):  # type: ignore[no-untyped-def]
    scan = WRITERS[kind](tmp_path / "scan").path
    harm(scan)
    with pytest.raises(CaptureError, match=said):
        import_scan(scan, tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan"]


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    scan = scenes.nerfstudio(tmp_path / "scan").path
    scenes.photo(0).save(tmp_path / "private.jpg")
    (scan / "images/frame_00003.jpg").unlink()
    (scan / "images/frame_00003.jpg").symlink_to(tmp_path / "private.jpg")
    with pytest.raises(CaptureError, match="outside the scan's folder"):
        import_scan(scan, tmp_path / "bundle")


@pytest.mark.parametrize("name", ["../evil.jpg", "/evil.jpg", "a\\evil.jpg", "C:evil.jpg", "a\nb.jpg"])
def test_hostile_names_in_a_zip_are_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "scan.r3d", "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(CaptureError, match="leaves the archive's folder"):
        import_scan(tmp_path / "scan.r3d", tmp_path / "bundle")


def test_links_and_bombs_in_a_zip_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = zipfile.ZipInfo("rgbd/0.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(CaptureError, match="is a link"):
        import_scan(tmp_path / "link.zip", tmp_path / "bundle")
    monkeypatch.setattr("scan2twin.importers.archive.MAX_UNPACKED_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/a.jpg", bytes(3 << 20))
    with pytest.raises(CaptureError, match="is it a bomb"):
        import_scan(tmp_path / "bomb.zip", tmp_path / "bundle")


@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_never_crash_or_write_elsewhere(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    """Cut, bytes changed, removed: a capture that can be read, or a refusal; and the source stays as it was."""
    shutil.rmtree(tmp_path / "fuzz", ignore_errors=True)
    written = WRITERS[kind](tmp_path / "fuzz" / "scan").path
    files = [written] if written.is_file() else sorted(path for path in written.rglob("*") if path.is_file())
    files = [path for path in files if path.name not in ("points3D.bin", "rigs.bin", "frames.bin")]  # nobody reads them
    documents = [path for path in files if path.suffix not in (".jpg", ".png")]
    path = data.draw(st.sampled_from(documents * 3 + files))
    raw = bytearray(path.read_bytes())
    harm = data.draw(st.sampled_from(["cut", "change", "remove"]))
    if harm == "cut":
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    for _ in range(data.draw(st.integers(1, 8)) if harm == "change" and raw else 0):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    if harm == "remove":
        path.unlink()
    before = snapshot(tmp_path / "fuzz")
    try:
        import_scan(written, tmp_path / "fuzz" / "bundle")
    except CaptureError as error:
        assert all(reason.strip() for reason in error.reasons)  # noqa: PT017 (either outcome is right)
        assert snapshot(tmp_path / "fuzz") == before
    else:
        assert check_bundle(tmp_path / "fuzz" / "bundle") == []


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_what_is_no_scan_says_what_would_be(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    for name in ("notes.txt", "empty", "absent"):
        with pytest.raises(CaptureError, match=r"(not a scan that is known here|no such file).*Polycam"):
            import_scan(tmp_path / name, tmp_path / "bundle")


def test_a_bundle_is_itself_and_a_scan_becomes_one(make_capture, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    capture = make_capture()
    with as_bundle(capture) as (bundle, done):
        assert (bundle, done) == (capture, None)
    (capture / "capture.json").unlink()
    assert is_bundle(capture)  # half a bundle: its own reader says what is missing
    with as_bundle(scenes.record3d(tmp_path / "scan").path) as (bundle, done):
        assert done is not None
        assert (done.kind, done.capture_id, done.frames) == ("Record3D", "walk", 8)
        assert check_bundle(bundle) == []
    assert not bundle.exists()


def test_a_store_takes_a_scan_like_a_capture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(str(tmp_path / "store"))
    scan = scenes.nerfstudio(tmp_path / "scan").path
    caplog.set_level("INFO", logger="scan2twin")
    assert import_capture(store, scan) == "scan"
    assert "1 of 9 photos are missing" in caplog.text
    assert find_capture(store, "scan").location.capture_id == "scan"
    import_capture(store, scan)
    assert "already in the store, unchanged" in caplog.text


@pytest.mark.parametrize("kind", ["LLFF", "Record3D"])
def test_a_full_disk_is_no_fault_of_the_scan(kind: str, tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse the write that crosses the limit, wherever it goes."""
    script = """
import resource, signal, sys
from scan2twin.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
main()
"""
    scan = WRITERS[kind](tmp_path / "scan").path
    words = [sys.executable, "-c", script, "import", str(scan), "--out", str(tmp_path / "bundle")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == ResourceError.exit_code, done.stderr
    assert "the disk is full" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan"]


def test_a_capture_is_not_imported_as_photos(make_capture, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CaptureError, match="is a capture already"):
        import_scan(make_capture(), tmp_path / "bundle")


def test_upload_takes_captures_and_scans(make_capture, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    scan = str(scenes.record3d(tmp_path / "scan").path)
    words = [sys.executable, "-m", "scan2twin", "upload", str(make_capture()), scan, "--json"]
    environment = {**os.environ, "SCAN2TWIN_STORE": str(tmp_path / "store")}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert json.loads(done.stdout) == ["test-capture", "walk"], done.stderr
    assert "the scan's unit" not in done.stderr
    for name in ("test-capture", "walk"):
        assert find_capture(open_store(str(tmp_path / "store")), name).location.capture_id == name
    assert api.upload(scan, str(tmp_path / "store")) == "walk"


def test_an_import_ends_with_what_it_said_or_nothing(tmp_path: Path) -> None:
    scan = scenes.llff(tmp_path / "scan").path
    os.utime(scan, (0, 0))
    assert import_scan(scan, tmp_path / "bundle", "my-own-id").capture_id == "my-own-id"
    with pytest.raises(Exception, match="capture_id"):
        import_scan(scan, tmp_path / "other", "No Good")
    assert not (tmp_path / "other").exists()


def test_likeness_counts_matches_that_stand_out() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(50, 128)).astype(np.float32)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    other = rng.normal(size=(40, 128)).astype(np.float32)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    nearly = a[:20] + rng.normal(0, 0.01, (20, 128)).astype(np.float32)
    b = np.concatenate([other, nearly / np.linalg.norm(nearly, axis=1, keepdims=True)])
    assert likeness(a, b) == 20
    assert likeness(a, b[:1]) == 0

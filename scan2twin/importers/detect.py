"""Which kind of scan a folder or file is, and its import."""

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from scan2twin.capture.reader import is_bundle
from scan2twin.errors import CaptureError
from scan2twin.importers.archive import unpack_foreign
from scan2twin.importers.colmap import model_folder, read_colmap
from scan2twin.importers.llff import POSES, read_llff
from scan2twin.importers.marker import metres_per_unit_of
from scan2twin.importers.photos import photos_in, read_photos, read_video
from scan2twin.importers.polycam import read_polycam
from scan2twin.importers.record3d import read_record3d
from scan2twin.importers.scan import Scan, write_scan
from scan2twin.importers.stray import read_stray
from scan2twin.importers.transforms import NAMES, read_transforms
from scan2twin.importers.video import VIDEO_SUFFIXES
from scan2twin.progress import LogProgress, Progress
from scan2twin.store.base import disk_errors

MAX_FRAMES = 120  # taken from a video or a recording of every frame: a step of 3° round the object
EXPECTED = (
    "expected transforms.json (nerfstudio, instant-ngp, NeRFCapture, Blender), Polycam's keyframes/, Record3D's .r3d, "
    "Stray Scanner's odometry.csv, a COLMAP model with images/, poses_bounds.npy (LLFF), a folder of photos, or a video"
)


@dataclass(frozen=True)
class Imported:
    """What came of an import."""

    capture_id: str
    kind: str
    frames: int
    warnings: list[str] = field(default_factory=list)


def import_scan(
    source: Path, bundle: Path, capture_id: str | None = None, metres_per_unit: float | None = None,
    max_frames: int = MAX_FRAMES, progress: Progress | None = None, marker_side: float | None = None,
) -> Imported:  # fmt: skip
    """Write the scan `source` of another tool as a capture bundle into the folder `bundle`, which must not exist.

    A scan without true size gets it by `metres_per_unit`, or by a printed marker with sides of `marker_side` metres. Of
    videos and recordings `max_frames` frames are taken.

    Raises:
        CaptureError: `source` is none of the known kinds, or breaks its own conventions. `bundle` is not written.
        ResourceError: the disk is full.

    """
    if not source.exists():
        raise CaptureError(f"{source}: there is no such file or folder; {EXPECTED}")
    partial = bundle.with_name(f".{bundle.name}.part")
    with (
        disk_errors(f"importing {source.name}"),
        tempfile.TemporaryDirectory(prefix="scan2twin-import-") as scratch,
    ):
        kind, scan = _read(source, Path(scratch), max_frames, progress or LogProgress())
        if marker_side is not None and not scan.metric and metres_per_unit is None:
            metres_per_unit = metres_per_unit_of(scan.frames, marker_side, progress or LogProgress())
        try:
            partial.mkdir(parents=True)
            name = write_scan(scan, source, partial, capture_id, metres_per_unit)
            partial.rename(bundle)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    warnings = [*scan.warnings]
    if not scan.metric and metres_per_unit is None:
        warnings.append("the scan's unit is not known: give --marker-side or --metres-per-unit for true metres")
    return Imported(name, kind, len(scan.frames), warnings)


def _read(source: Path, scratch: Path, max_frames: int, progress: Progress) -> tuple[str, Scan]:
    """Return the kind of `source` and what is in it."""
    (scratch / "unpacked").mkdir()
    (scratch / "frames").mkdir()
    if source.is_file() and source.suffix.lower() in VIDEO_SUFFIXES:
        return "video", read_video(source, scratch / "frames", max_frames, progress)
    if source.is_file() and source.suffix.lower() == ".json":
        return "transforms.json", read_transforms(source)
    if source.is_file() and zipfile.is_zipfile(source):
        folder = unpack_foreign(source, scratch / "unpacked")
    elif source.is_dir():
        folder = source
    else:
        raise CaptureError(f"{source.name}: not a scan that is known here; {EXPECTED}")
    if is_bundle(folder):  # as photos it would lose its poses
        raise CaptureError(f"{source.name}: is a capture already; give it to `scan2twin run` or `scan2twin upload`")
    if (folder / "keyframes").is_dir():
        return "Polycam", read_polycam(folder)
    if (folder / "metadata").is_file() and (folder / "rgbd").is_dir():
        return "Record3D", read_record3d(folder, max_frames)
    if (folder / "odometry.csv").is_file():
        return "Stray Scanner", read_stray(folder, scratch / "frames", max_frames)
    if any((folder / name).is_file() for name in NAMES):
        return "transforms.json", read_transforms(folder)
    if (folder / POSES).is_file():
        return "LLFF", read_llff(folder)
    if model_folder(folder) is not None:
        return "COLMAP", read_colmap(folder)
    if photos := photos_in(folder):
        return "photos", read_photos(photos, scratch / "frames", progress)
    raise CaptureError(f"{source.name}: not a scan that is known here; {EXPECTED}")


@contextmanager
def as_bundle(source: Path, progress: Progress | None = None) -> Iterator[tuple[Path, Imported | None]]:
    """Yield a capture bundle with the scan `source`: itself if it is one, else an import that goes afterwards.

    Raises:
        CaptureError: it is neither.

    """
    if is_bundle(source):
        yield source, None
        return
    with tempfile.TemporaryDirectory(prefix="scan2twin-import-") as temporary:
        bundle = Path(temporary) / "bundle"
        imported = import_scan(source, bundle, progress=progress)
        yield bundle, imported

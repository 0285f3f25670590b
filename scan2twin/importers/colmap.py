"""COLMAP models: `cameras` and `images`, as `.bin` or `.txt`, beside a folder `images/`.

Conventions (COLMAP documentation, "Output Format"): world to camera, quaternion [w x y z] and translation, OpenCV
camera axes; pixels with the origin at the image's top-left corner, as here. The parameters of each camera model are
those of COLMAP's `models.h`. Scale and up direction are the structure from motion's own, so +Y is made the mean up
direction of the cameras. Read here and not by pycolmap: its reader trusts its file.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from scipy.spatial.transform import Rotation

from scan2twin.capture.models import Distortion, Intrinsics
from scan2twin.capture.names import quoted
from scan2twin.errors import CaptureError
from scan2twin.importers.scan import OPENCV_TO_OPENGL, Matrix, Scan, SourceFrame, inside, level

T = TypeVar("T")

MODEL_FOLDERS = (".", "sparse/0", "sparse", "colmap/sparse/0", "model", "dense/sparse")
PHOTO_FOLDERS = ("images", "dense/images", "input", ".")
MAX_MODEL_BYTES = 1 << 30  # images.bin lists every feature

# Name -> id in binary files, focal lengths (1 or 2), our lens model, and where its coefficients lie among the
# parameters after cx, cy; None is a zero.
Layout = tuple[int, int, str | None, tuple[int | None, ...]]
MODELS: dict[str, Layout] = {
    "SIMPLE_PINHOLE": (0, 1, None, ()),
    "PINHOLE": (1, 2, None, ()),
    "SIMPLE_RADIAL": (2, 1, "opencv", (0, None, None, None)),
    "RADIAL": (3, 1, "opencv", (0, 1, None, None)),
    "OPENCV": (4, 2, "opencv", (0, 1, 2, 3)),
    "OPENCV_FISHEYE": (5, 2, "opencv_fisheye", (0, 1, 2, 3)),
    "FULL_OPENCV": (6, 2, "opencv", (0, 1, 2, 3, 4, 5, 6, 7)),
    "FOV": (7, 2, "fov", (0,)),
    "SIMPLE_RADIAL_FISHEYE": (8, 1, "opencv_fisheye", (0, None, None, None)),
    "RADIAL_FISHEYE": (9, 1, "opencv_fisheye", (0, 1, None, None)),
    "THIN_PRISM_FISHEYE": (10, 2, "thin_prism_fisheye", (0, 1, 2, 3, 4, 5, 6, 7)),
}
NAME_OF_ID = {layout[0]: name for name, layout in MODELS.items()}


@dataclass(frozen=True)
class Camera:
    """A camera of the model."""

    size: tuple[int, int]
    intrinsics: Intrinsics
    distortion: Distortion | None


@dataclass(frozen=True)
class Photo:
    """A registered photo."""

    name: str
    camera: int
    quaternion: list[float]  # w x y z, world to camera
    translation: list[float]


def model_folder(source: Path) -> Path | None:
    """Return the folder of a COLMAP model in `source`; None if there is none."""
    return next((source / name for name in MODEL_FOLDERS if _file(source / name, "cameras") is not None), None)


def read_colmap(source: Path) -> Scan:
    """Read the folder `source` with a model and its photos.

    Raises:
        CaptureError: the model is cut off, of an unknown kind, or none of its photos is there.

    """
    folder = model_folder(source)
    if folder is None:
        raise CaptureError(f"{source.name}: no cameras.bin or cameras.txt here or in sparse/0/")
    cameras = dict(_read(folder, "cameras", _binary_cameras, _text_cameras))
    photos = sorted(_read(folder, "images", _binary_photos, _text_photos), key=lambda photo: photo.name)
    frames, missing, poses = [], [], []
    for photo in photos:
        camera = cameras.get(photo.camera)
        if camera is None:
            raise CaptureError(
                f"{folder.name}/images: {quoted(photo.name)} is of camera {photo.camera}, not in cameras"
            )
        path = _find(source, photo.name)
        if path is None:
            missing.append(photo.name)
            continue
        poses.append(camera_to_world(photo))
        frames.append(SourceFrame(path, poses[-1], camera.intrinsics, camera.size, camera.distortion))
    if not frames:
        raise CaptureError(f"{source.name}: none of the model's {len(missing)} photos is in images/; copy them there")
    for frame, pose in zip(frames, level(np.array(poses)), strict=True):
        frame.camera_to_world = pose
    warnings = []
    if missing:
        shown = ", ".join(map(quoted, missing[:3]))
        warnings.append(f"{len(missing)} of {len(photos)} photos are missing and left out: {shown}")
    return Scan(frames, tracker="colmap", warnings=warnings)


def camera_to_world(photo: Photo) -> Matrix:
    """Return the (4, 4) camera-to-world matrix, OpenGL camera axes. Raises CaptureError."""
    w, x, y, z = photo.quaternion
    if not np.isfinite([*photo.quaternion, *photo.translation]).all() or np.linalg.norm(photo.quaternion) < 1e-6:
        raise CaptureError(f"images: {quoted(photo.name)}: its pose is zero or not finite; export the model again")
    world_to_camera = np.eye(4)
    world_to_camera[:3, :3] = Rotation.from_quat([x, y, z, w]).as_matrix()
    world_to_camera[:3, 3] = photo.translation
    return np.asarray(np.linalg.inv(world_to_camera) @ OPENCV_TO_OPENGL, np.float64)


def make_camera(model: str, width: int, height: int, params: list[float]) -> Camera:
    """Return the camera of a COLMAP model by name. Raises ValueError."""
    if model not in MODELS:
        raise ValueError(
            f"camera model {quoted(model)} cannot be undistorted here; expected one of {', '.join(MODELS)}"
        )
    _, focals, lens, places = MODELS[model]
    count = parameter_count(model)
    if len(params) != count or not np.isfinite(params).all():
        raise ValueError(f"{model} has {count} finite parameters, got {len(params)}")
    if not (0 < width < 1 << 20 and 0 < height < 1 << 20 and min(params[:focals]) > 0):
        raise ValueError(f"{model} of {width}×{height} pixels and focal length {params[0]:g}: not a camera")
    cx, cy, *rest = params[focals:]
    k = [0.0 if place is None else rest[place] for place in places]
    plain = lens is None or (lens in ("opencv", "fov") and not any(k))
    return Camera(
        (width, height),
        Intrinsics(fx=params[0], fy=params[focals - 1], cx=cx, cy=cy),
        None if plain else Distortion.model_validate({"model": lens, "k": k}),
    )


def parameter_count(model: str) -> int:
    """Return how many parameters a known camera model has."""
    _, focals, _, places = MODELS[model]
    return focals + 2 + sum(place is not None for place in places)


def _file(folder: Path, stem: str) -> Path | None:
    paths = [folder / f"{stem}{suffix}" for suffix in (".bin", ".txt")]
    return next((path for path in paths if path.is_file()), None)


def _find(source: Path, name: str) -> Path | None:
    for folder in PHOTO_FOLDERS:
        path = inside(source, f"{folder}/{name}")
        try:
            if path is not None and path.is_file():
                return path
        except (OSError, ValueError):
            return None
    return None


def _read(
    folder: Path, stem: str, binary: Callable[[bytes], Iterator[T]], text: Callable[[list[str]], Iterator[T]]
) -> list[T]:
    path = _file(folder, stem)
    if path is None:
        raise CaptureError(f"{folder.name}/{stem}.bin: missing, and {stem}.txt too; copy the whole model")
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise CaptureError(f"{path.name}: {path.stat().st_size} bytes, over the limit of {MAX_MODEL_BYTES}")
    raw = path.read_bytes()
    try:
        return list(binary(raw) if path.suffix == ".bin" else text(raw.decode("utf-8").splitlines()))
    except (struct.error, ValueError, IndexError, OverflowError) as error:  # UnicodeDecodeError is a ValueError
        raise CaptureError(f"{path.name}: {error}; was it cut off? export the model again") from None


def _binary_cameras(raw: bytes) -> Iterator[tuple[int, Camera]]:
    (count,), at = struct.unpack_from("<Q", raw), 8
    for _ in range(count):
        id_, model_id, width, height = struct.unpack_from("<iiQQ", raw, at)
        at += 24
        if model_id not in NAME_OF_ID:
            raise ValueError(f"camera model number {model_id} cannot be undistorted here")
        model = NAME_OF_ID[model_id]
        params = struct.unpack_from(f"<{parameter_count(model)}d", raw, at)
        at += 8 * len(params)
        yield id_, make_camera(model, width, height, list(params))


def _text_cameras(lines: list[str]) -> Iterator[tuple[int, Camera]]:
    for line in lines:
        if line.strip() and not line.startswith("#"):
            id_, model, width, height, *params = line.split()
            yield int(id_), make_camera(model, int(width), int(height), [float(value) for value in params])


def _binary_photos(raw: bytes) -> Iterator[Photo]:
    (count,), at = struct.unpack_from("<Q", raw), 8
    for _ in range(count):
        _, *numbers, camera = struct.unpack_from("<i7di", raw, at)
        at += 64
        end = raw.index(b"\0", at)
        name = raw[at:end].decode("utf-8")
        (features,) = struct.unpack_from("<Q", raw, end + 1)
        at = end + 9 + 24 * features
        if at > len(raw):
            raise ValueError(f"ends within the features of {quoted(name)}")
        yield Photo(name, camera, numbers[:4], numbers[4:])


def _text_photos(lines: list[str]) -> Iterator[Photo]:
    content = [line for line in lines if not line.startswith("#")]
    while content and not content[-1].strip():
        content.pop()
    for line in content[::2]:  # every other line lists features
        _, *numbers, camera, name = line.split(maxsplit=9)
        yield Photo(name, int(camera), [float(value) for value in numbers[:4]], [float(v) for v in numbers[4:]])

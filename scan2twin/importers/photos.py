"""Plain photos or a video: cameras by structure from motion (pycolmap), in units and with a level of its own making.

Photos must show a scene that stands still, each overlapping several others. One camera is assumed (f, principal
point, one radial term); the unit is the median distance of the cameras from the point they look at, so a known
distance may give the true one (`metres_per_unit`).
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scan2twin.capture.models import Intrinsics
from scan2twin.errors import CaptureError
from scan2twin.importers.colmap import make_camera
from scan2twin.importers.scan import (
    OPENCV_TO_OPENGL,
    PHOTO_SUFFIXES,
    Scan,
    SourceFrame,
    level,
    nearest_to_rays,
    open_photo,
    spread,
)
from scan2twin.importers.video import extract_frames, frame_count
from scan2twin.progress import Progress

SEED = 0
LONG_SIDE = 1000  # pixels of the photos that features are found in
FEATURES = 8000  # a photo, at most
PEAK_THRESHOLD = 0.004  # of SIFT's contrast, below its 0.0067: a smooth object gives few strong features
CAMERA_MODEL = "SIMPLE_RADIAL"  # f cx cy k; more coefficients let the first pair run away
ALL_PAIRS_UP_TO = 20  # photos; with more, each is matched with those most like it
PARTNERS = 16  # most like it
SEQUENCE = 2  # and its neighbours by name on each side
SAMPLED = 1000  # features of a photo, the largest, by which likeness is judged
RATIO = 0.8  # Lowe 2004, section 7.1
MIN_PHOTOS = 3  # with fewer there is no shape
JPEG_QUALITY = 95
ENOUGH_INLIERS = 150  # points that two photos share; with fewer, more are looked for
# Of the mapper, below its 100, 30 and 15: with few photos wide apart, those that overlap share few points.
FIRST_PAIR_INLIERS, NEXT_PHOTO_INLIERS, PAIR_INLIERS = 50, 20, 10


def photos_in(folder: Path) -> list[Path]:
    """Return the photos of `folder`, or of its images/, by name."""
    for place in (folder, folder / "images"):
        if place.is_dir():
            found = sorted(path for path in place.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES)
            if found:
                return found
    return []


def read_video(video: Path, scratch: Path, max_frames: int, progress: Progress) -> Scan:
    """Take `max_frames` frames of a video, evenly spread, and find their cameras. Raises CaptureError."""
    (scratch / "video").mkdir()
    frames = extract_frames(video, spread(frame_count(video), max_frames), scratch / "video")
    if len(frames) < MIN_PHOTOS:
        raise CaptureError(f"{video.name}: {len(frames)} frames could be decoded; was it cut off? copy it again")
    return read_photos(list(frames.values()), scratch, progress)


def read_photos(photos: Sequence[Path], scratch: Path, progress: Progress) -> Scan:
    """Find the cameras of `photos`; working files go into the folder `scratch`.

    Raises:
        CaptureError: a photo cannot be read, or too few of them belong together.

    """
    (scratch / "scaled").mkdir()
    sizes = _scale_down(photos, scratch / "scaled", progress)
    largest = max(set(sizes), key=sizes.count)
    used = [i for i, size in enumerate(sizes) if size == largest]
    warnings = [
        f"{photos[i].name}: left out: {size[0]}×{size[1]} pixels, the others have {largest[0]}×{largest[1]}; "
        "one camera is assumed"
        for i, size in enumerate(sizes)
        if size != largest
    ]
    for i in set(range(len(photos))) - set(used):
        (scratch / "scaled" / _name(i)).unlink()
    model = structure_from_motion(scratch, len(used), progress)
    if model is None or model.num_reg_images() < MIN_PHOTOS:
        raise CaptureError(
            "structure from motion found no cameras: the photos overlap too little or have too little texture; "
            "take at least 30, each a step on from the last, and put the object on a newspaper"
        )
    registered: dict[int, Any] = {
        int(Path(image.name).stem): image for image in model.images.values() if image.has_pose
    }
    if lost := [photos[i].name for i in used if i not in registered]:
        warnings.append(
            f"{len(lost)} of {len(photos)} photos left out, for nothing in them matched the others: "
            + ", ".join(lost[:5])
            + (", …" if len(lost) > 5 else "")
        )
    numbers = sorted(registered)
    poses = level(np.array([_camera_to_world(registered[i]) for i in numbers]))
    poses[:, :3, 3] -= nearest_to_rays(poses[:, :3, 3], -poses[:, :3, 2])  # what they look at
    poses[:, :3, 3] /= np.median(np.linalg.norm(poses[:, :3, 3], axis=1))
    (camera,) = {image.camera_id: image.camera for image in registered.values()}.values()
    ours = make_camera(camera.model.name, camera.width, camera.height, list(camera.params))
    frames = [
        SourceFrame(photos[i], pose, _of_size(ours.intrinsics, ours.size, sizes[i]), sizes[i], ours.distortion)
        for i, pose in zip(numbers, poses, strict=True)
    ]
    return Scan(frames, tracker="colmap", warnings=warnings)


def structure_from_motion(work: Path, count: int, progress: Progress) -> Any:
    """Return the largest pycolmap reconstruction of the `count` photos in `work`/scaled; None if there is none."""
    import pycolmap

    pycolmap.set_random_seed(SEED)
    database, photos = work / "database.db", work / "scaled"
    progress.start("finding features", count)
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.sift.max_num_features = FEATURES
    extraction.sift.peak_threshold = PEAK_THRESHOLD
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = CAMERA_MODEL
    pycolmap.extract_features(
        database, photos, camera_mode=pycolmap.CameraMode.SINGLE, reader_options=reader, extraction_options=extraction
    )
    progress.advance(count)
    pairs = _pairs(database)
    progress.start("matching pairs of photos", len(pairs))
    _match(database, pairs, work, guided=False)
    progress.advance(len(pairs))
    weak = _forget_weak_pairs(database)
    progress.start("matching weak pairs again", len(weak))
    _match(database, weak, work, guided=True)
    progress.advance(len(weak))
    progress.start("finding cameras", count)
    mapping = pycolmap.IncrementalPipelineOptions()
    mapping.random_seed = SEED
    mapping.num_threads = 1  # the same photos give the same cameras and unit
    mapping.min_num_matches = PAIR_INLIERS
    mapping.min_model_size = MIN_PHOTOS
    mapping.mapper.init_min_num_inliers = FIRST_PAIR_INLIERS
    mapping.mapper.abs_pose_min_num_inliers = NEXT_PHOTO_INLIERS
    models = pycolmap.incremental_mapping(
        database, photos, work, options=mapping, next_image_callback=lambda: progress.advance()
    )
    return max(models.values(), key=lambda model: model.num_reg_images(), default=None)


def _match(database: Path, pairs: Sequence[tuple[str, str]], work: Path, *, guided: bool) -> None:
    """Match and verify pairs; `guided` looks again along the epipolar lines, which takes seven times as long."""
    import pycolmap

    matching = pycolmap.FeatureMatchingOptions()
    matching.guided_matching = guided
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = work / "pairs.txt"
    (work / "pairs.txt").write_text("".join(f"{a} {b}\n" for a, b in pairs), encoding="utf-8")
    if pairs:
        pycolmap.match_image_pairs(database, matching_options=matching, pairing_options=pairing)


def _forget_weak_pairs(database: Path) -> list[tuple[str, str]]:
    """Delete what was verified of pairs with few points in common, keeping their matches; return their names.

    Guided matching doubles their points, which is what joins groups of photos to one model.
    """
    import pycolmap

    with pycolmap.Database.open(database) as opened:
        names = {image.image_id: image.name for image in opened.read_all_images()}
        weak = [
            pycolmap.pair_id_to_image_pair(pair)
            for pair, inliers in zip(*opened.read_two_view_geometry_num_inliers(), strict=True)
            if PAIR_INLIERS <= inliers < ENOUGH_INLIERS
        ]
        for a, b in weak:
            opened.delete_two_view_geometry(a, b)
    return [(names[a], names[b]) for a, b in weak]


def _pairs(database: Path) -> list[tuple[str, str]]:
    """Return the pairs of photos, by name, worth matching: neighbours in order, and those most alike."""
    import pycolmap

    with pycolmap.Database.open(database) as opened:
        images = sorted(opened.read_all_images(), key=lambda image: image.name)
        descriptors = [
            _sample(opened.read_keypoints(image.image_id), opened.read_descriptors(image.image_id)) for image in images
        ]
    count = len(images)
    chosen = {
        (a, b) for a, b in itertools.combinations(range(count), 2) if b - a <= SEQUENCE or count <= ALL_PAIRS_UP_TO
    }
    if count > ALL_PAIRS_UP_TO:
        alike = np.zeros((count, count))
        for a, b in itertools.combinations(range(count), 2):
            alike[a, b] = alike[b, a] = likeness(descriptors[a], descriptors[b])
        for a in range(count):
            chosen |= {(min(a, b), max(a, b)) for b in np.argsort(-alike[a])[:PARTNERS].tolist() if b != a}
    return [(images[a].name, images[b].name) for a, b in sorted(chosen)]


def likeness(a: NDArray[np.float32], b: NDArray[np.float32]) -> int:
    """Return how many of the unit descriptors `a` (N, D) have a match among `b` (M, D) that stands out."""
    if len(a) == 0 or len(b) < 2:
        return 0
    cosine = a @ b.T
    second, first = np.partition(cosine, -2, axis=1)[:, -2:].T
    # Of unit vectors, the squared distance is 2 - 2 cos.
    return int((1 - first < RATIO**2 * (1 - second)).sum())


def _sample(keypoints: Any, descriptors: Any) -> NDArray[np.float32]:
    """Return the unit descriptors of the `SAMPLED` largest features: what two photos share at any distance."""
    shape = np.asarray(keypoints.data if hasattr(keypoints, "data") else keypoints)
    values = np.asarray(descriptors.data if hasattr(descriptors, "data") else descriptors, np.float32)
    scale = np.hypot(shape[:, 2], shape[:, 4]) if shape.shape[1] >= 6 else shape[:, 2]
    largest = values[np.argsort(-scale)[:SAMPLED]]
    unit: NDArray[np.float32] = largest / np.maximum(np.linalg.norm(largest, axis=1, keepdims=True), 1e-6)
    return unit


def _scale_down(photos: Sequence[Path], folder: Path, progress: Progress) -> list[tuple[int, int]]:
    """Write each photo, its long side at most `LONG_SIDE`, into `folder`; return the sizes as stored."""
    progress.start("reading photos", len(photos))
    sizes = []
    for i, photo in enumerate(photos):
        with open_photo(photo) as image:
            sizes.append(image.size)
            image.draft("RGB", (LONG_SIDE, LONG_SIDE))
            rgb = np.asarray(image.convert("RGB"))
        share = min(1.0, LONG_SIDE / max(sizes[-1]))
        size = (round(sizes[-1][0] * share), round(sizes[-1][1] * share))
        scaled = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        cv2.imwrite(
            str(folder / _name(i)), cv2.cvtColor(scaled, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        )
        progress.advance()
    return sizes


def _name(i: int) -> str:
    return f"{i:06d}.jpg"


def _camera_to_world(image: Any) -> NDArray[np.float64]:
    """Return the (4, 4) camera-to-world matrix, OpenGL camera axes, of a pycolmap image."""
    pose = np.eye(4)
    pose[:3] = image.cam_from_world().inverse().matrix()
    return pose @ OPENCV_TO_OPENGL


def _of_size(intrinsics: Intrinsics, size: tuple[int, int], other: tuple[int, int]) -> Intrinsics:
    """Return intrinsics of an image of `size` for the same image scaled to `other`."""
    x, y = other[0] / size[0], other[1] / size[1]
    return Intrinsics(fx=intrinsics.fx * x, fy=intrinsics.fy * y, cx=intrinsics.cx * x, cy=intrinsics.cy * y)

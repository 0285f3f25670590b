"""True scale from a printed marker of known size that lies in the scene.

Any square marker of the dictionaries below will do. Its corners are found in the photos and placed in the scan's world
where the rays through them meet; the length of its sides there against the true one gives the unit.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from scan2twin.capture.models import Distortion
from scan2twin.errors import CaptureError
from scan2twin.importers.scan import OPENCV_TO_OPENGL, SourceFrame, nearest_to_rays, open_photo
from scan2twin.progress import Progress

Floats = NDArray[np.float64]

DICTIONARIES = {
    "ArUco 4×4": cv2.aruco.DICT_4X4_50,
    "ArUco 5×5": cv2.aruco.DICT_5X5_50,
    "AprilTag 36h11": cv2.aruco.DICT_APRILTAG_36h11,
}
LONG_SIDE = 2000  # pixels of the photos that markers are looked for in
MIN_VIEWS = 3  # two rays nearly always meet somewhere
MAX_MISS = 0.01  # distance of a ray from the corner, in distances of its camera: half a degree
MAX_UNEVEN = 0.05  # by which the sides of a square may differ


def metres_per_unit_of(frames: Sequence[SourceFrame], side_m: float, progress: Progress) -> float:
    """Return the length of the scan's unit by the markers with sides of `side_m` metres in its photos.

    Raises:
        CaptureError: there is none in enough photos, or what was found is no square.

    """
    seen: dict[tuple[str, int], list[tuple[Floats, Floats]]] = {}
    progress.start("looking for the marker", len(frames))
    for frame in frames:
        for marker, corners in _markers(frame).items():
            seen.setdefault(marker, []).append((frame.camera_to_world[:3, 3], _rays(frame, corners)))
        progress.advance()
    sides = [length for views in seen.values() if (length := _side(views)) is not None]
    if not sides:
        raise CaptureError(
            f"no marker ({', '.join(DICTIONARIES)}) is a square in at least {MIN_VIEWS} of the {len(frames)} photos; "
            "print it larger with a white margin, lay it flat beside the object, or give --metres-per-unit"
        )
    if max(sides) > (1 + MAX_UNEVEN) * min(sides):
        raise CaptureError(
            f"the {len(sides)} markers have different sizes, in ratios of up to {max(sides) / min(sides):.2f}; "
            "use markers of one size, and each number once"
        )
    return side_m / float(np.median(sides))


def _markers(frame: SourceFrame) -> dict[tuple[str, int], Floats]:
    """Return the corners (4, 2) of each marker in a photo, in pixels of its camera; a number seen twice is left out."""
    with open_photo(frame.photo) as image:
        size = image.size
        image.draft("L", (LONG_SIDE, LONG_SIDE))
        grey = np.asarray(image.convert("L"))
    share = min(1.0, LONG_SIDE / max(grey.shape))
    if share < 1:
        grey = cv2.resize(grey, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
    parameters = cv2.aruco.DetectorParameters()
    parameters.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_APRILTAG
    stated = frame.size or size
    to_camera = np.array([stated[0] / grey.shape[1], stated[1] / grey.shape[0]])
    found: dict[tuple[str, int], Floats] = {}
    for name, number in DICTIONARIES.items():
        detector = cv2.aruco.ArucoDetector(cv2.aruco.getPredefinedDictionary(number), parameters)
        corners, ids, _ = detector.detectMarkers(grey)
        numbers = [] if ids is None else ids.ravel().tolist()
        for quad, marker in zip(corners, numbers, strict=True):
            if numbers.count(marker) == 1:
                # OpenCV counts from the middle of the first pixel.
                found[name, marker] = (quad.reshape(4, 2).astype(np.float64) + 0.5) * to_camera
    return found


def _rays(frame: SourceFrame, pixels: Floats) -> Floats:
    """Return the unit directions (N, 3), in the world, of pixels (N, 2) of a photo."""
    i = frame.intrinsics
    K = np.array([[i.fx, 0, i.cx], [0, i.fy, i.cy], [0, 0, 1]])
    plane = _undistorted(pixels, K, frame.distortion)
    rays = np.column_stack([plane, np.ones(len(plane))]) @ (frame.camera_to_world @ OPENCV_TO_OPENGL)[:3, :3].T
    return np.asarray(rays / np.linalg.norm(rays, axis=1, keepdims=True), np.float64)


def _undistorted(pixels: Floats, K: Floats, lens: Distortion | None) -> Floats:
    k = np.array(lens.k if lens else [0.0] * 4)
    if lens is None or lens.model == "opencv":
        return np.asarray(cv2.undistortPoints(pixels[:, None], K, k).reshape(-1, 2), np.float64)
    if lens.model == "opencv_fisheye":
        return np.asarray(cv2.fisheye.undistortPoints(pixels[:, None], K, k).reshape(-1, 2), np.float64)
    raise CaptureError(f"markers cannot be measured through the lens model {lens.model}; give --metres-per-unit")


def _side(views: Sequence[tuple[Floats, Floats]]) -> float | None:
    """Return the length of a marker's sides from its views (camera's place, rays (4, 3)); None if it is no square."""
    while len(views) >= MIN_VIEWS:
        places = np.array([place for place, _ in views])
        rays = np.array([ray for _, ray in views])
        corners = np.stack([nearest_to_rays(places, rays[:, corner]) for corner in range(4)])
        away = corners - places[:, None]  # (V, 4, 3)
        distance = np.linalg.norm(away, axis=2)
        miss = np.linalg.norm(np.cross(away, rays), axis=2) / np.maximum(distance, 1e-12)
        worst = miss.max(axis=1)
        if worst.max() < MAX_MISS:
            sides = np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1)
            even = sides.max() <= (1 + MAX_UNEVEN) * sides.min() and ((away * rays).sum(axis=2) > 0).all()
            return float(sides.mean()) if even else None
        views = [view for view, one in zip(views, worst, strict=True) if one < worst.max()]
    return None

"""Frames of a video as JPEG files."""

from collections.abc import Sequence
from pathlib import Path

import cv2

from scan2twin.errors import CaptureError

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
JPEG_QUALITY = 95


def extract_frames(video: Path, numbers: Sequence[int], folder: Path) -> dict[int, Path]:
    """Write the frames `numbers` (from 0, increasing) of `video` into `folder`; return those that exist.

    Frames are stored as the sensor took them: a turn that the video asks for is not applied, for poses and intrinsics
    belong to the sensor.

    Raises:
        CaptureError: the file is no video.

    """
    capture = _open(video)
    wanted = set(numbers)
    written = {}
    for number in range(max(wanted, default=-1) + 1):
        if not capture.grab():
            break
        if number in wanted:
            decoded, image = capture.retrieve()
            if not decoded:
                continue
            written[number] = folder / f"{number:06d}.jpg"
            cv2.imwrite(str(written[number]), image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    capture.release()
    return written


def frame_count(video: Path) -> int:
    """Return how many frames `video` says it has. Raises CaptureError."""
    capture = _open(video)
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    return max(count, 0)


def _open(video: Path) -> cv2.VideoCapture:
    if not video.is_file():
        raise CaptureError(f"{video.name}: missing; copy the whole recording")
    capture = cv2.VideoCapture(str(video))
    if not capture.isOpened():
        raise CaptureError(f"{video.name}: not a video that can be read; was it cut off? copy it again")
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
    return capture

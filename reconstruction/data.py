"""The dataset as tensors: square views, premultiplied, with their cameras."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from reconstruction.cameras import clip_from_camera, inverse_rigid
from reconstruction.sparse_points import SparsePoints, load_points
from scan2twin.errors import InputError
from scan2twin.frames import Dataset, DatasetFrame

MIN_VIEWS = 8  # fewer views cannot close a surface all round
MIN_MASK_SHARE = 0.002  # of the image; below, a mask is as good as empty
MAX_MASK_SHARE = 0.98  # above, there is no outline to learn from


@dataclass(frozen=True)
class Views:
    """Views of one size. Images are stored bottom row first, as the rasteriser renders them.

    index (B,): the capture's frame numbers. images (B, R, R, 4) uint8: sRGB times mask, and the mask (255 =
    object). clip_from_camera (B, 4, 4) and camera_from_unit (B, 4, 4) float32: OpenGL camera axes, unit frame,
    column vectors. weight (B,) float32: trust in each view. photo (B, 4) float64: left, bottom, right and top edge of
    what the photo covers of each image, as shares of its side; None where it covers all. gain (B, 3) float32: what is
    known beforehand of each view's exposure and white balance, on linear RGB; None or 1 where nothing is. points: what
    structure from motion found of the surface; None if nothing.
    """

    index: tuple[int, ...]
    images: torch.Tensor
    clip_from_camera: torch.Tensor
    camera_from_unit: torch.Tensor
    weight: torch.Tensor
    photo: NDArray[np.float64] | None = None
    gain: torch.Tensor | None = None
    points: SparsePoints | None = None

    def __len__(self) -> int:
        """Return the number of views."""
        return len(self.index)

    @property
    def resolution(self) -> int:
        """Side of the images, pixels."""
        return self.images.shape[1]

    def to(self, device: torch.device) -> "Views":
        """Return the same views with their tensors on `device`."""
        names = ("images", "clip_from_camera", "camera_from_unit", "weight")
        gain = None if self.gain is None else self.gain.to(device)
        points = None if self.points is None else self.points.to(device)
        return replace(self, gain=gain, points=points, **{name: getattr(self, name).to(device) for name in names})

    def resized(self, resolution: int) -> "Views":
        """Return the same views with images of side `resolution`, area-averaged."""
        images = torch.from_numpy(np.stack([_resize(image, resolution) for image in self.images.cpu().numpy()]))
        return replace(self, images=images.to(self.images.device))

    def window(self, number: int) -> tuple[slice, slice]:
        """Return the rows and columns of image `number` that lie wholly within the photo; beyond, it says nothing."""
        if self.photo is None:
            return slice(None), slice(None)
        left, bottom, right, top = self.photo[number] * self.resolution
        return slice(_first(bottom), _first(top, from_above=True)), slice(_first(left), _first(right, from_above=True))

    @cached_property
    def pixel_weight(self) -> torch.Tensor:
        """How much each pixel says of the object, (B, R, R) uint8, 255 = in full.

        None beyond the photo; little where the mask is fractional and does not run from 0 to 1 within a pixel's
        neighbourhood, since a wide soft border is doubt about where the outline lies and not partial coverage.
        """
        weight = np.zeros(self.images.shape[:3], np.uint8)
        for k, image in enumerate(self.images.cpu().numpy()):
            window = self.window(k)
            weight[k][window] = np.rint(255 * mask_certainty(image[..., 3]))[window]
        return torch.from_numpy(weight).to(self.images.device)

    def pixel_from_unit(self) -> NDArray[np.float64]:
        """Return (B, 3, 4) projections to pixels, origin top-left, v down, with positive depth in front."""
        clip = (self.clip_from_camera.double() @ self.camera_from_unit.double()).cpu().numpy()
        half = self.resolution / 2
        return np.stack(
            [half * (clip[:, 0] + clip[:, 3]), half * (clip[:, 3] - clip[:, 1]), clip[:, 3]], axis=1
        )  # fmt: skip

    def focal(self) -> NDArray[np.float64]:
        """Return the focal lengths (B,), pixels."""
        return self.clip_from_camera[:, 0, 0].double().cpu().numpy() * self.resolution / 2

    def centers(self) -> NDArray[np.float64]:
        """Return the camera centres (B, 3), unit frame."""
        return inverse_rigid(self.camera_from_unit.double().cpu().numpy())[:, :3, 3]


def _first(edge: float, from_above: bool = False) -> int:
    """Return the first pixel edge at or after `edge`, or at or before it; a thousandth of a pixel is rounding."""
    return int(np.floor(edge + 1e-3) if from_above else np.ceil(edge - 1e-3))


def mask_certainty(mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return how far a mask (H, W) can be believed at each pixel: 0 to 1, float32.

    1 - 4 m (1 - m) (1 - s), with m the mask and s its range over the 3×3 pixels around: a sharp outline, however it
    falls between the pixels, has s = 1.
    """
    around = np.ones((3, 3), np.uint8)
    spread = cv2.dilate(mask, around).astype(np.float32) - cv2.erode(mask, around)
    share = mask.astype(np.float32) / 255
    return np.asarray(1 - 4 * share * (1 - share) * (1 - spread / 255), np.float32)


def _resize(image: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    if image.shape[0] == resolution:
        return image
    shrinks = resolution < image.shape[0]
    return np.asarray(
        cv2.resize(image, (resolution, resolution), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR),
        np.uint8,
    )


def load_views(folder: Path, dataset: Dataset, split: str, resolution: int) -> tuple[Views, list[str]]:
    """Read the views of one split ("train" or "heldout") whose weight is not 0, and say which were left out.

    Views whose mask is empty or full are left out, each with a warning.

    Raises:
        InputError: a file is missing, broken or of another size, or too few views to train on are left.

    """
    frames: list[DatasetFrame] = []
    images: list[NDArray[np.uint8]] = []
    broken: list[str] = []
    unusable: list[str] = []
    for frame in dataset.frames:
        if frame.split != split or frame.weight == 0:
            continue
        try:
            rgba = _load_image(folder, frame, dataset.resolution)
        except InputError as error:
            broken += error.reasons
            continue
        share = float((rgba[:, :, 3] >= 128).mean())
        if MIN_MASK_SHARE <= share <= MAX_MASK_SHARE:
            frames.append(frame)
            images.append(_resize(rgba, resolution))
        else:
            fault = "full: show the whole object with some background" if share > 0.5 else "empty: give a mask"
            unusable.append(f"{frame.mask}: view left out, its mask is {fault} ({share:.1%} object)")
    if broken:
        raise InputError(*broken)
    if split == "train" and len(frames) < MIN_VIEWS:
        raise InputError(
            f"dataset.json: {len(frames)} usable masked views to train on, {MIN_VIEWS} are needed; "
            "capture more frames all round the object",
            *unusable,
        )
    cameras = np.array([frame.camera_to_unit for frame in frames], np.float64).reshape(-1, 4, 4)
    projections = [clip_from_camera(f.intrinsics, dataset.resolution, dataset.resolution) for f in frames]
    views = Views(
        tuple(frame.index for frame in frames),
        torch.from_numpy(np.array(images, np.uint8).reshape(-1, resolution, resolution, 4)),
        torch.from_numpy(np.array(projections, np.float32).reshape(-1, 4, 4)),
        torch.from_numpy(inverse_rigid(cameras).astype(np.float32)),
        torch.tensor([frame.weight for frame in frames], dtype=torch.float32),
        np.array([_photo_edges(frame, dataset.resolution) for frame in frames]).reshape(-1, 4),
        torch.tensor([frame.gain or (1.0, 1.0, 1.0) for frame in frames], dtype=torch.float32).reshape(-1, 3),
        load_points(folder, tuple(frame.index for frame in frames)),
    )
    return views, unusable


def _photo_edges(frame: DatasetFrame, side: int) -> tuple[float, float, float, float]:
    """Return the edges of the photo in a view as `Views.photo` has them."""
    if frame.photo is None:
        return 0.0, 0.0, 1.0, 1.0
    photo = frame.photo
    edges = (photo.left / side, 1 - photo.bottom / side, photo.right / side, 1 - photo.top / side)
    left, bottom, right, top = (min(max(edge, 0.0), 1.0) for edge in edges)
    return left, bottom, right, top


def _load_image(folder: Path, frame: DatasetFrame, side: int) -> NDArray[np.uint8]:
    """Read a view as (side, side, 4) uint8, premultiplied sRGB and mask, bottom row first; 0 beyond the photo."""
    bgr = _read(folder, frame.image, cv2.IMREAD_COLOR, side)
    mask = _read(folder, frame.mask, cv2.IMREAD_GRAYSCALE, side)
    left, bottom, right, top = (round(edge * side) for edge in _photo_edges(frame, side))
    mask[: side - top] = mask[side - bottom :] = 0
    mask[:, :left] = mask[:, right:] = 0
    # Multiplying before any shrinking keeps background colour out of the pixels on the outline.
    rgb = bgr[:, :, ::-1] * (mask[:, :, None].astype(np.float32) / 255)
    return np.ascontiguousarray(np.dstack([np.rint(rgb).astype(np.uint8), mask])[::-1])


def _read(folder: Path, name: str, flags: int, side: int) -> NDArray[np.uint8]:
    raster = cv2.imread(str(folder / name), flags)
    if raster is None:
        raise InputError(f"{name}: missing or not a readable image; run the mask stage again")
    if raster.shape[:2] != (side, side):
        raise InputError(
            f"{name}: {raster.shape[1]}×{raster.shape[0]} pixels, dataset.json says {side}×{side}; "
            "run the mask stage again"
        )
    return np.asarray(raster, np.uint8)


def check_cameras(views: Views, object_size: NDArray[np.float64]) -> None:
    """Refuse cameras that cannot give a model.

    Raises:
        InputError: a camera is inside the object's box, or all cameras look from one side.

    """
    centers = views.centers()
    inside = np.all(np.abs(centers) < object_size / 2, axis=1)
    reasons = [
        f"frame {views.index[k]}: the camera is inside the object's box; make the box smaller or drop the frame"
        for k in np.flatnonzero(inside)
    ]
    directions = centers / np.maximum(np.linalg.norm(centers, axis=1, keepdims=True), 1e-9)
    # The length of the mean direction is 1 when all cameras look from one point and near 0 all round; a cap of
    # half-angle a has a mean of (1 + cos a) / 2, so 0.933 is a cap of 30 degrees.
    spread = float(np.linalg.norm(directions.mean(axis=0)))
    if spread > 0.933:
        reasons.append(
            f"dataset.json: all {len(views)} cameras look from one side (mean direction {spread:.2f} of 1); "
            "walk round the object"
        )
    if reasons:
        raise InputError(*reasons)

"""Square crops round the projected object box, and the intrinsics that follow them exactly."""

import math
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
import numpy.typing as npt

from preprocessing.images import UInt8, shrink
from scan2twin.capture.models import Intrinsics, ObjectBox
from scan2twin.frames import PixelRectangle

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Crop:
    """A square of whole pixels: left and top edge and side, in pixels of the full image; may reach beyond it."""

    left: int
    top: int
    side: int


def box_corners(box: ObjectBox, scale: float = 1.0) -> Float64:
    """Return the (8, 3) corners of `box`, grown about its centre by `scale`; metres, reference frame."""
    signs = np.array(list(product((-0.5, 0.5), repeat=3)))
    corners: Float64 = np.array(box.center) + signs * box.size * scale
    return corners


def project(points: Float64, camera_to_reference: Float64, intrinsics: Intrinsics) -> tuple[Float64, Float64]:
    """Project (N, 3) points of the reference frame: (N, 2) pixels and (N,) depths in front of the camera.

    `camera_to_reference` is 4×4 with OpenGL camera axes (looks along -Z). Pixels of points with depth <= 0 have
    no meaning.
    """
    rotation, position = camera_to_reference[:3, :3], camera_to_reference[:3, 3]
    x, y, z = ((points - position) @ rotation).T
    depth = -z
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = np.column_stack([
            intrinsics.cx + intrinsics.fx * x / depth, intrinsics.cy - intrinsics.fy * y / depth,
        ])  # fmt: skip
    return pixels, depth


def square_crop(corners: Float64, width: int, height: int, margin: float) -> Crop | None:
    """Return the square round the visible part of the projected box's (8, 2) `corners`; None if none is visible.

    `margin` is the space kept on each side as a share of the box's longer visible side. The square is moved, not
    cut, to stay inside the image where it fits.
    """
    low = np.maximum(corners.min(0), 0)
    high = np.minimum(corners.max(0), [width, height])
    if np.any(high - low < 1):
        return None
    side = int(np.ceil((high - low).max() * (1 + 2 * margin)))
    edges = []
    for middle, size in zip((low + high) / 2, (width, height), strict=True):
        first = round(float(middle) - side / 2)
        edges.append(min(max(first, 0), size - side) if side <= size else round((size - side) / 2))
    return Crop(edges[0], edges[1], side)


def grown_crop(crop: Crop, growth: float, width: int, height: int) -> Crop:
    """Return `crop` with its side times `growth` about its middle, moved to stay inside the image where it fits."""
    side = round(crop.side * growth)
    left, top = (
        min(max(edge, 0), size - side) if side <= size else edge
        for edge, size in (
            (round(crop.left - (side - crop.side) / 2), width), (round(crop.top - (side - crop.side) / 2), height)
        )
    )  # fmt: skip
    return Crop(left, top, side)


def recrop(raster: Float32, source: Crop, target: Crop) -> Float32:
    """Resample the (R, R) raster of the square `source` into the square `target`; 0 where that reaches beyond."""
    resolution = len(raster)
    scale = target.side / source.side
    # Pixels of the target to pixels of the source; OpenCV counts from the first pixel's centre.
    left, top = (
        (there - here) * resolution / source.side + 0.5 * scale - 0.5
        for there, here in ((target.left, source.left), (target.top, source.top))
    )
    matrix = np.array([[scale, 0, left], [0, scale, top]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(raster, matrix, (resolution, resolution), flags=flags), np.float32)


def crop_intrinsics(intrinsics: Intrinsics, crop: Crop, resolution: int) -> Intrinsics:
    """Return the intrinsics of the crop resized to `resolution`² pixels (edges of the square map to edges)."""
    scale = resolution / crop.side
    return Intrinsics(
        fx=intrinsics.fx * scale, fy=intrinsics.fy * scale,
        cx=(intrinsics.cx - crop.left) * scale, cy=(intrinsics.cy - crop.top) * scale,
    )  # fmt: skip


def photo_rectangle(crop: Crop, width: int, height: int, resolution: int) -> PixelRectangle:
    """Return what a photo of `width` × `height` pixels covers of the crop resized to `resolution`² pixels."""
    left, right = max(-crop.left, 0), min(width - crop.left, crop.side)
    top, bottom = max(-crop.top, 0), min(height - crop.top, crop.side)
    edges = [edge * resolution / crop.side for edge in (left, top, right, bottom)]
    return PixelRectangle(left=edges[0], top=edges[1], right=edges[2], bottom=edges[3])


def whole_pixels(rectangle: PixelRectangle) -> tuple[slice, slice]:
    """Return the rows and the columns of the pixels that lie wholly inside `rectangle`."""
    rounding = 1e-6
    first_row, first_column = (math.ceil(edge - rounding) for edge in (rectangle.top, rectangle.left))
    last_row, last_column = (math.floor(edge + rounding) for edge in (rectangle.bottom, rectangle.right))
    return slice(first_row, last_row), slice(first_column, last_column)


def crop_image(image: UInt8, crop: Crop, resolution: int) -> UInt8:
    """Cut `crop` out of (H, W, 3) sRGB or an (H, W) mask and resize it to `resolution`².

    Beyond the image a photo goes on with its border's pixels and a mask with 0, not object.
    """
    height, width = image.shape[:2]
    left, top = max(crop.left, 0), max(crop.top, 0)
    right, bottom = min(crop.left + crop.side, width), min(crop.top + crop.side, height)
    square: UInt8 = cv2.copyMakeBorder(
        image[top:bottom, left:right],
        top - crop.top, crop.top + crop.side - bottom, left - crop.left, crop.left + crop.side - right,
        cv2.BORDER_REPLICATE if image.ndim == 3 else cv2.BORDER_CONSTANT, value=0,
    )  # fmt: skip
    if resolution < crop.side:
        return shrink(square, (resolution, resolution))
    if resolution > crop.side:
        square = cv2.resize(square, (resolution, resolution), interpolation=cv2.INTER_LANCZOS4)
    return square


def box_region(corners: Float64, resolution: int) -> npt.NDArray[np.bool_]:
    """Return the (resolution, resolution) raster of the convex hull of projected (8, 2) `corners`."""
    region = np.zeros((resolution, resolution), np.uint8)
    hull = cv2.convexHull(corners.astype(np.float32))
    fixed_point_bits = 4
    # fillConvexPoly counts from the first pixel's centre, so half a pixel less than our corner origin.
    points = np.rint((hull - 0.5) * 2**fixed_point_bits).astype(np.int32)
    cv2.fillConvexPoly(region, points, 1, shift=fixed_point_bits)
    return region.astype(bool)

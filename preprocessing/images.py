"""Reading photos as they are stored, and averaging pixels in linear light."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pillow_heif
from PIL import ExifTags, Image, ImageCms

from scan2twin.errors import CaptureError

pillow_heif.register_heif_opener()  # Pillow then opens HEIC; libheif has already turned it upright

UInt8 = npt.NDArray[np.uint8]
FORMATS = ("JPEG", "PNG", "HEIF")  # Pillow's names of what a bundle's images may be
SIXTEEN_BIT_GREY = ("I;16", "I;16B", "I")  # Pillow's modes of a 16-bit grey PNG

# EXIF 2.32, tag 0x0112: value -> (the stored raster is mirrored, quarter turns counter-clockwise to upright).
# A mirrored raster is un-mirrored left to right first and turned after.
EXIF_ORIENTATIONS = {
    1: (False, 0), 2: (True, 0), 3: (False, 2), 4: (True, 2),
    5: (True, 1), 6: (False, 3), 7: (True, 3), 8: (False, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Photo:
    """A decoded image, its raster exactly as stored (EXIF orientation not applied)."""

    rgb: UInt8  # (H, W, 3), sRGB
    orientation: int | None  # EXIF value 1..8; None if the file does not say


def read_photo(path: Path) -> Photo:
    """Decode `path` (JPEG, PNG or HEIC) to 8-bit sRGB; an embedded colour profile (Display P3 on phones) is converted.

    Of 16 bits a channel the upper 8 are kept.

    Raises:
        CaptureError: the file cannot be decoded whole.

    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation)
            image.load()
            rgb = np.asarray(_to_srgb(image, path.name))
    except (OSError, SyntaxError, ValueError) as error:
        raise CaptureError(
            f"{path.parent.name}/{path.name}: cannot be decoded ({error}); copy the capture again from the phone"
        ) from error
    return Photo(rgb, orientation if orientation in EXIF_ORIENTATIONS else None)


def eight_bit(image: Image.Image) -> Image.Image:
    """Return `image` with 8 bits a channel; Pillow itself would cut 16-bit grey off at 255."""
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if image.mode in SIXTEEN_BIT_GREY else image


def _to_srgb(image: Image.Image, name: str) -> Image.Image:
    rgb = eight_bit(image).convert("RGB")
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA"):
        return rgb
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return rgb
        converted = ImageCms.profileToProfile(rgb, source, ImageCms.createProfile("sRGB"))
    except (ImageCms.PyCMSError, OSError):  # a broken or non-RGB profile: the pixels are good, so take them as sRGB
        return rgb
    return converted or rgb


def srgb_to_linear(encoded: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Decode sRGB values 0..1 to linear light 0..1 (IEC 61966-2-1)."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Encode linear light 0..1 as sRGB values 0..1 (IEC 61966-2-1)."""
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)


# 16 bits hold the darkest 8-bit sRGB step (1/255/12.92) twenty times over, so the way there and back is exact.
_LINEAR_OF_SRGB = np.rint(srgb_to_linear(np.arange(256) / 255) * 65535).astype(np.uint16)
_SRGB_OF_LINEAR = np.rint(linear_to_srgb(np.arange(65536) / 65535) * 255).astype(np.uint8)


def shrink(image: UInt8, size: tuple[int, int]) -> UInt8:
    """Average down to `size` (width, height) with an area filter: (H, W, 3) sRGB in linear light, (H, W) as it is.

    The sensor added up light, so the mean of a bright and a dark pixel is the mean of their light; the mean of
    the stored (gamma) values darkens every edge.
    """
    if image.ndim == 2:
        area: UInt8 = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return area
    linear = cv2.LUT(image, _LINEAR_OF_SRGB)
    averaged = cv2.resize(linear, size, interpolation=cv2.INTER_AREA)
    encoded: UInt8 = _SRGB_OF_LINEAR[averaged]
    return encoded


def write_jpeg(path: Path, rgb: UInt8) -> None:
    """Write (H, W, 3) sRGB as a JPEG of quality 95 with full-resolution colour (4:4:4)."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _write(path, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)


def write_png(path: Path, image: UInt8) -> None:
    """Write (H, W, 3) sRGB or (H, W) grey as an 8-bit PNG."""
    _write(path, cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image, [])


def _write(path: Path, bgr: UInt8, options: list[int]) -> None:
    if not cv2.imwrite(str(path), bgr, options):
        raise OSError(f"{path}: could not be written; is the disk full?")


def read_image(path: Path) -> UInt8:
    """Read an 8-bit image written by `write_jpeg` or `write_png`: (H, W, 3) sRGB or (H, W)."""
    image: UInt8 | None = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise OSError(f"{path}: cannot be read")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if image.ndim == 3 else image


def read_mask(path: Path) -> UInt8:
    """Read a mask that came with a capture as (H, W), 255 = object, whatever its pixel format.

    Raises:
        CaptureError: the file cannot be decoded whole.

    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L"))
    except (OSError, SyntaxError, ValueError) as error:
        raise CaptureError(
            f"masks/{path.name}: cannot be decoded ({error}); export the mask again as 8-bit PNG"
        ) from error


def read_alpha(path: Path) -> UInt8 | None:
    """Return the alpha channel (H, W) of the image at `path`; None, without decoding it, if it has none."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None

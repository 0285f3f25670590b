"""The contact sheet: every view with its mask's outline, the least trusted first, for a person to look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from preprocessing.images import UInt8, read_image, shrink, write_jpeg

THUMBNAIL = 200  # pixels
COLUMNS = 8
CAPTION = 22  # pixels under each thumbnail
GOOD, DOUBTFUL, WRONG = (70, 200, 90), (240, 180, 40), (235, 70, 60)  # RGB of outline and caption


@dataclass(frozen=True)
class SheetEntry:
    """One view on the sheet."""

    name: str  # file name in images/ and masks/
    trust: float  # 0..1; 0 is left out
    note: str  # what is shown beside the number


def colour_of(trust: float) -> tuple[int, int, int]:
    """Return the RGB colour in which a view of this trust is drawn."""
    return GOOD if trust >= 0.8 else DOUBTFUL if trust >= 0.5 else WRONG


def thumbnail(photo: UInt8, mask: UInt8, entry: SheetEntry) -> UInt8:
    """Return the (T + caption, T, 3) picture of one view: what is outside the mask darkened, its outline, a caption."""
    size = (THUMBNAIL, THUMBNAIL)
    small = shrink(photo, size) if len(photo) > THUMBNAIL else cv2.resize(photo, size)
    inside = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
    shade = 0.45 + 0.55 * (inside[..., None] / 255)
    picture = np.rint(small * shade).astype(np.uint8)
    outlines, _ = cv2.findContours((inside >= 128).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, colour_of(entry.trust), 1, cv2.LINE_AA)
    caption = np.full((CAPTION, THUMBNAIL, 3), 24, np.uint8)
    text = f"{Path(entry.name).stem}  {entry.trust:.2f}  {entry.note}"
    cv2.putText(caption, text, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.38, colour_of(entry.trust), 1, cv2.LINE_AA)
    return np.vstack([picture, caption])


def write_contact_sheet(folder: Path, entries: Sequence[SheetEntry]) -> None:
    """Write `folder`/contact_sheet.jpg from `folder`/images and `folder`/masks, the least trusted view first."""
    ordered = sorted(entries, key=lambda entry: (entry.trust, entry.name))
    columns = min(COLUMNS, len(ordered))
    rows = -(-len(ordered) // columns)
    sheet = np.full((rows * (THUMBNAIL + CAPTION), columns * THUMBNAIL, 3), 24, np.uint8)
    for place, entry in enumerate(ordered):
        picture = thumbnail(
            read_image(folder / "images" / entry.name), read_image(folder / "masks" / entry.name), entry
        )
        top, left = place // columns * (THUMBNAIL + CAPTION), place % columns * THUMBNAIL
        sheet[top : top + THUMBNAIL + CAPTION, left : left + THUMBNAIL] = picture
    write_jpeg(folder / "contact_sheet.jpg", sheet)

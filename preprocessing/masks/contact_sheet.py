"""The contact sheet: every view with its mask's outline, the least trusted first, for a person to look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from preprocessing.crop import whole_pixels
from preprocessing.images import UInt8, read_image, shrink, write_jpeg
from scan2twin.frames import PixelRectangle

THUMBNAIL, GAP, CAPTION, HEADER = 232, 6, 24, 64  # pixels
COLUMNS = 7
TITLE_SIZE, TEXT_SIZE = 22, 15
PAPER, INK = (24, 24, 24), (225, 225, 225)  # RGB
GOOD, DOUBTFUL, WRONG = (80, 210, 100), (245, 185, 45), (240, 75, 65)  # RGB of outline and caption
GOOD_TRUST, DOUBTFUL_TRUST = 0.8, 0.5
LEGEND = ((GOOD, "trusted"), (DOUBTFUL, "doubtful"), (WRONG, "not trusted, or left out"))


@dataclass(frozen=True)
class SheetEntry:
    """One view on the sheet."""

    name: str  # file name in images/ and masks/
    trust: float  # 0..1; 0 is left out
    note: str  # what is shown beside the number
    photo: PixelRectangle  # what the photo covers of the square; the rest is left dark


def colour_of(trust: float) -> tuple[int, int, int]:
    """Return the RGB colour in which a view of this trust is drawn."""
    return GOOD if trust >= GOOD_TRUST else DOUBTFUL if trust >= DOUBTFUL_TRUST else WRONG


def thumbnail(photo: UInt8, mask: UInt8, entry: SheetEntry) -> UInt8:
    """Return the (T, T, 3) picture of one view: what is outside the mask darkened, the mask's outline over it."""
    size = (THUMBNAIL, THUMBNAIL)
    photo = photo.copy()
    covered = np.zeros(photo.shape[:2], bool)
    covered[whole_pixels(entry.photo)] = True
    photo[~covered] = PAPER
    small = shrink(photo, size) if len(photo) > THUMBNAIL else cv2.resize(photo, size)
    inside = cv2.resize(mask, size, interpolation=cv2.INTER_AREA)
    picture: UInt8 = np.rint(small * (0.5 + 0.5 * (inside[..., None] / 255))).astype(np.uint8)
    outlines, _ = cv2.findContours((inside >= 128).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, colour_of(entry.trust), 1, cv2.LINE_AA)
    return picture


def write_contact_sheet(folder: Path, title: str, entries: Sequence[SheetEntry]) -> None:
    """Write `folder`/contact_sheet.jpg from `folder`/images and `folder`/masks, the least trusted view first."""
    ordered = sorted(entries, key=lambda entry: (entry.trust, entry.name))
    cell_width, cell_height = THUMBNAIL + GAP, THUMBNAIL + CAPTION + GAP
    columns = min(COLUMNS, max(len(ordered), 4))  # the legend needs some width
    rows = -(-len(ordered) // columns)
    sheet = Image.new("RGB", (columns * cell_width + GAP, HEADER + rows * cell_height + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    text = ImageFont.load_default(TEXT_SIZE)
    draw.text((GAP, 6), title, INK, ImageFont.load_default(TITLE_SIZE))
    x = float(GAP)
    for colour, meaning in LEGEND:
        draw.text((x, 36), meaning, colour, text)
        x += draw.textlength(meaning, text) + 4 * GAP
    draw.text((x, 36), "worst first; a number is the trust in the mask", INK, text)
    for place, entry in enumerate(ordered):
        picture = thumbnail(
            read_image(folder / "images" / entry.name), read_image(folder / "masks" / entry.name), entry
        )
        left, top = GAP + place % columns * cell_width, HEADER + place // columns * cell_height
        sheet.paste(Image.fromarray(picture), (left, top))
        caption = (top + THUMBNAIL + 3, colour_of(entry.trust))
        draw.text((left + 2, caption[0]), f"{int(Path(entry.name).stem)}   {entry.trust:.2f}", caption[1], text)
        draw.text((left + THUMBNAIL - 2, caption[0]), entry.note, caption[1], text, anchor="ra")
    write_jpeg(folder / "contact_sheet.jpg", np.asarray(sheet))

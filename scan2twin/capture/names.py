"""Which file names a bundle may have. Everything else is refused, with the reason."""

import re
from collections import Counter
from collections.abc import Iterable

# Files that operating systems leave in folders and archives: ignored, never read.
LITTER = re.compile(r"(^|/)(__MACOSX(/.*)?|\.DS_Store|Thumbs\.db|desktop\.ini)$")

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")
_STEM = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_FRAME = re.compile(rf"images/{_STEM}\.(jpg|jpeg|png|heic)")
_ALLOWED = re.compile(rf"capture\.json|frames\.jsonl|images/{_STEM}\.(jpg|jpeg|png|heic)|(masks|depth)/{_STEM}\.png")


def name_fault(name: str) -> str | None:
    """Say why `name` may not be a file of a bundle; None if it may.

    Only names on the format's list pass; the first checks exist to give hostile names their true reason.
    """
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "name has control characters"
    if "\\" in name or re.match(r"[A-Za-z]:", name):
        return "name has a backslash or a drive letter; use / between folder and file"
    if name.startswith("/"):
        return "path is absolute; names are relative to the bundle"
    if ".." in name.split("/"):
        return "path leaves the bundle through `..`"
    if name.lower().endswith(_ARCHIVES):
        return "archives inside a bundle are not allowed"
    if not _ALLOWED.fullmatch(name):
        return "not a file of a bundle: only images/*.jpg|png|heic, masks/*.png, depth/*.png and the two documents"
    return None


def frame_name_fault(name: str) -> str | None:
    """Say why `name` may not be a frame's image; None if it may."""
    if _FRAME.fullmatch(name):
        return None
    return name_fault(name) or "not an image: a frame's file is images/*.jpg, *.jpeg, *.png or *.heic"


def list_faults(names: Iterable[str]) -> list[str]:
    """Return what is wrong with a list of file names: bad names, duplicates, names that differ in case only."""
    faults: list[str] = []
    seen: dict[str, str] = {}
    for name, count in Counter(names).items():
        if fault := name_fault(name):
            faults.append(f"{quoted(name)}: {fault}")
        elif (other := seen.setdefault(name.lower(), name)) != name:
            faults.append(f"{quoted(name)}: differs from {quoted(other)} in case only; rename one")
        if count > 1:
            faults.append(f"{quoted(name)}: listed {count} times; list each file once")
    return faults


def quoted(name: str) -> str:
    """Return `name` as it may be shown: shortened, control characters escaped."""
    return ascii(name if len(name) <= 120 else name[:117] + "…")

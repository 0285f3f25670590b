"""Sample captures that ship with the package."""

from pathlib import Path

SKULL = Path(__file__).parent / "skull"  # bundle of real photos, CC BY 4.0: see ATTRIBUTION.md beside it

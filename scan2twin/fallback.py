"""Where memory runs out and a smaller preset is allowed, the next smaller one is used, once, and it is written down.

The note lies beside the output that could not be made, so that every later task of the run, and every retry, comes to
the same smaller configuration without being told:

    artifacts/<capture_id>/<stage>/<fingerprint>/out_of_memory.json
"""

import json
from dataclasses import dataclass

from scan2twin.config import PipelineConfig, Preset, resolve_config
from scan2twin.store import ArtifactStore

NOTE = "out_of_memory.json"
_ORDER = tuple(Preset)  # from the smallest to the largest


@dataclass(frozen=True)
class Fallback:
    """The configuration to use where `requested` takes too much memory."""

    requested: Preset
    preset: Preset
    config: PipelineConfig

    @property
    def warning(self) -> str:
        """What the user of the model should know."""
        return (
            f"made with preset {self.preset} because memory ran out with {self.requested}; "
            f"for {self.requested}, run it on a machine with more memory"
        )


def next_smaller(preset: str, overrides: dict[str, object]) -> Fallback | None:
    """Return what to fall back to from `preset`; None for the smallest."""
    position = _ORDER.index(Preset(preset))
    if position == 0:
        return None
    smaller = _ORDER[position - 1]
    return Fallback(Preset(preset), smaller, resolve_config(smaller, overrides))


def note_out_of_memory(store: ArtifactStore, output_folder: str, reason: str) -> bool:
    """Write down that memory ran out for the output at `output_folder`; False if that was known."""
    document = json.dumps({"reason": reason}).encode()
    return store.put_bytes(f"{output_folder}/{NOTE}", document, if_absent=True)


def ran_out_of_memory(store: ArtifactStore, output_folder: str) -> bool:
    """Tell whether memory ran out for the output at `output_folder` before."""
    return store.exists(f"{output_folder}/{NOTE}")

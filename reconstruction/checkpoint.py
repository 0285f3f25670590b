"""Checkpoints of the optimisation: a killed run goes on where it was and ends with the same result."""

import json
import logging
import pickle
import time
from pathlib import Path

import torch

from reconstruction.optimise import Optimiser

log = logging.getLogger("scan2twin")

INTERVAL_S = 30.0  # wall-clock time between checkpoints; at most 60 s of work may be lost
FILE = "optimiser.pt"


class Checkpoints:
    """Saves an optimiser's state to a folder now and then; does nothing when there is no folder."""

    def __init__(self, folder: Path | None) -> None:
        self._file = None if folder is None else folder / FILE
        self._last = time.monotonic()

    def restore(self, optimiser: Optimiser) -> bool:
        """Bring `optimiser` to the state saved last; False if there is none that fits.

        A file that cannot be read, or of another configuration, is left alone: starting anew is always right.
        """
        if self._file is None or not self._file.is_file():
            return False
        try:
            document = torch.load(self._file, map_location="cpu", weights_only=True)
            if document["key"] != _key(optimiser):
                return False
            optimiser.restore(document["state"])
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
            log.warning("checkpoint %s cannot be used (%s); starting anew", self._file.name, error)
            return False
        log.info("going on from the checkpoint at iteration %d", optimiser.iteration)
        return True

    def offer(self, optimiser: Optimiser) -> None:
        """Save the optimiser's state if it is due; the file is replaced atomically."""
        if self._file is None or time.monotonic() - self._last < INTERVAL_S:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(".partial")
        torch.save({"key": _key(optimiser), "state": optimiser.state()}, partial)
        partial.replace(self._file)
        self._last = time.monotonic()


def _key(optimiser: Optimiser) -> str:
    """Return what a checkpoint must share with the run that takes it up: configuration and views."""
    return json.dumps([optimiser.config.model_dump(mode="json"), optimiser.views.index, optimiser.views.resolution])

"""The real reconstruct stage on a small drawn dataset; run as a script, to be killed.

python checkpointed_run.py STORE CAPTURE_ID WORKDIR [hold]     (`hold`: makes WORKDIR/held in the middle and waits)
"""

import sys
import time
from pathlib import Path
from typing import Any

from scan2twin import stages
from scan2twin.config import resolve_config
from scan2twin.logs import configure_logging
from scan2twin.progress import LogProgress
from scan2twin.runner import run_stage
from scan2twin.stages import CAPTURE, Stage, StageInputs, StageResult
from scan2twin.store import open_store

SMALL = {"reconstruct": {"iterations": 80, "resolution": 48, "grid": 12}}
HOLD_AT = 65  # after the first iteration at which a checkpoint can be taken
STAGES = (
    Stage("mask", "checkpointed_run", (CAPTURE,), ""),
    Stage("reconstruct", "reconstruction.reconstruct", ("mask",), "", keeps_checkpoints=True),
)


class Held(LogProgress):
    """Makes a file and waits for good at iteration HOLD_AT."""

    def __init__(self, sign: Path) -> None:
        super().__init__()
        self._sign, self._steps = sign, 0

    def advance(self, steps: int = 1, **figures: float) -> None:
        self._steps += steps
        if self._steps >= HOLD_AT:
            self._sign.touch()
            time.sleep(600)


def run(inputs: StageInputs, outputs: Path, config: Any, progress: Any) -> StageResult:
    """Write the dataset that reconstruct reads."""
    from views_of_a_ball import camera_centres, write_dataset  # in tests/reconstruction

    write_dataset(outputs, camera_centres(9))
    return StageResult()


def main() -> None:
    from reconstruction import checkpoint

    checkpoint.INTERVAL_S = 0.0
    stages.STAGES = STAGES
    configure_logging()
    uri, capture_id, workdir, *hold = sys.argv[1:]
    for name in ("mask", "reconstruct"):
        progress = Held(Path(workdir, "held")) if hold else LogProgress()
        run_stage(
            open_store(uri), capture_id, name, resolve_config("draft", SMALL), progress, workdir=Path(workdir)
        )  # fmt: skip


if __name__ == "__main__":
    main()

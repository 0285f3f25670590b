"""What the optimisation leaves to be looked at while it runs: metrics.jsonl, and TensorBoard when asked."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from reconstruction.optimise import Step
from scan2twin.errors import ConfigError

LOG_EVERY = 10  # iterations between lines


class TrainingLog:
    """Writes every few steps to `metrics.jsonl`, and to the folder `tensorboard` if asked."""

    def __init__(self, outputs: Path, tensorboard: bool, resumed_at: int | None = None) -> None:
        """Open the files; a resumed run says so in its first line.

        Raises:
            ConfigError: TensorBoard is asked for and not installed.

        """
        self._board = _open_board(outputs / "tensorboard") if tensorboard else None
        self._file = (outputs / "metrics.jsonl").open("w", encoding="utf-8")
        if resumed_at is not None:
            self._file.write(json.dumps({"resumed_at": resumed_at}) + "\n")

    def write(self, step: Step, frame: int) -> None:
        """Record a step against training frame `frame` when a line is due."""
        if step.iteration % LOG_EVERY:
            return
        figures = {"loss": round(step.loss, 6), "psnr": round(step.psnr, 3), "triangles": step.triangles}
        self._file.write(json.dumps({"iteration": step.iteration, "frame": frame, **figures}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in figures.items():
                self._board.add_scalar(f"reconstruct/{name}", value, step.iteration)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _open_board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "config: reconstruct.tensorboard: TensorBoard is not installed; install scan2twin[tensorboard] or set false"
        ) from None
    return SummaryWriter(str(folder))

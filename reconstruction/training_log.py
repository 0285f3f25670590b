"""What the optimisation leaves to be looked at while it runs: metrics.jsonl, and TensorBoard when asked."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from reconstruction.optimise import Optimiser, Step
from scan2twin.errors import ConfigError

LOG_EVERY = 10  # iterations between lines
PICTURES = 20  # that TensorBoard gets over a whole run


class TrainingLog:
    """Writes every few steps to `metrics.jsonl`, and to the folder `tensorboard`, with pictures, if asked."""

    def __init__(self, outputs: Path, optimiser: Optimiser, resumed: bool) -> None:
        """Open the files; a resumed run says so in its first line.

        Raises:
            ConfigError: TensorBoard is asked for and not installed.

        """
        self._optimiser, self._total = optimiser, optimiser.config.iterations
        self._board = _open_board(outputs / "tensorboard") if optimiser.config.tensorboard else None
        self._file = (outputs / "metrics.jsonl").open("w", encoding="utf-8")
        if resumed:
            self._line({"resumed_at": optimiser.iteration})

    def write(self, step: Step, it_per_s: float) -> None:
        """Record a step when a line or a picture is due."""
        if step.iteration % LOG_EVERY == 0:
            figures = {
                "loss": round(step.loss, 6),
                "psnr": round(step.psnr, 3),
                "triangles": step.triangles,
                "it_per_s": round(it_per_s, 2),
                "eta_s": round((self._total - step.iteration - 1) / it_per_s, 1),
            }
            self._line({"iteration": step.iteration, "frame": self._optimiser.views.index[step.view], **figures})
            if self._board is not None:
                for name, value in figures.items():
                    self._board.add_scalar(f"reconstruct/{name}", value, step.iteration)
        if self._board is not None and (step.iteration + 1) % max(self._total // PICTURES, 1) == 0:
            name = f"reconstruct/frame {self._optimiser.views.index[0]}: photo, rendering, error x4"
            self._board.add_image(name, self._optimiser.picture(0), step.iteration, dataformats="HWC")

    def _line(self, content: dict[str, Any]) -> None:
        self._file.write(json.dumps(content) + "\n")
        self._file.flush()

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

"""How a stage tells what it is doing: a bar with an ETA on a terminal, plain log lines elsewhere."""

import logging
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

log = logging.getLogger("scan2twin")

LOG_INTERVAL_S = 5.0  # a line every few seconds reads well in a pod's log and costs nothing


class Progress(Protocol):
    """What a stage may call while it runs. Implementations never raise."""

    def start(self, description: str, total: int) -> None:
        """Begin a counted piece of work; ends the previous one."""

    def advance(self, steps: int = 1, **figures: float) -> None:
        """Count `steps` more as done; `figures` (loss, PSNR, …) are shown beside the bar."""

    def close(self) -> None:
        """End the last piece of work."""


def _figures_text(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


class LogProgress:
    """Progress as log lines, at most one every `LOG_INTERVAL_S` seconds, each with its ETA."""

    def __init__(self) -> None:
        self._description, self._total, self._done = "", 0, 0
        self._started = self._last_line = time.monotonic()
        self._figures: dict[str, float] = {}

    def start(self, description: str, total: int) -> None:
        """See `Progress.start`."""
        self.close()
        self._description, self._total, self._done = description, total, 0
        self._started = self._last_line = time.monotonic()
        self._figures = {}
        log.info("%s: 0/%d", description, total)

    def advance(self, steps: int = 1, **figures: float) -> None:
        """See `Progress.advance`."""
        self._done += steps
        self._figures.update(figures)
        now = time.monotonic()
        if now - self._last_line >= LOG_INTERVAL_S and self._done < self._total:
            self._last_line = now
            left_s = (now - self._started) / max(self._done, 1) * (self._total - self._done)
            log.info("%s: %d/%d, %.0f s left  %s", self._description, self._done, self._total, left_s,
                     _figures_text(self._figures))  # fmt: skip

    def close(self) -> None:
        """See `Progress.close`."""
        if self._description:
            log.info("%s: %d/%d in %.1f s  %s", self._description, self._done, self._total,
                     time.monotonic() - self._started, _figures_text(self._figures))  # fmt: skip
            self._description = ""


class BarProgress:
    """Progress as a rich bar on a terminal (standard error, so that standard output stays machine-readable)."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: RichProgress | None = None
        self._task = TaskID(0)

    def start(self, description: str, total: int) -> None:
        """See `Progress.start`."""
        self.close()
        self._bar = RichProgress(
            TextColumn("    {task.description:<24}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
        )
        self._task = self._bar.add_task(description, total=total, figures="")
        self._bar.start()

    def advance(self, steps: int = 1, **figures: float) -> None:
        """See `Progress.advance`."""
        if self._bar is not None:
            if figures:
                self._bar.update(self._task, figures=_figures_text(figures))
            self._bar.advance(self._task, steps)

    def close(self) -> None:
        """See `Progress.close`."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

"""Progress as a person and as a log reader see it."""

import io
import logging

import pytest
from rich.console import Console

from scan2twin import progress as progress_module
from scan2twin.progress import BarProgress, LogProgress


def test_log_lines_say_how_far_and_how_long(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 600, 6))  # each look at the clock is 6 s later, so every step earns a line
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: float(next(clock)))
    caplog.set_level(logging.INFO, logger="scan2twin")
    progress = LogProgress()
    progress.start("masking", 3)
    progress.advance(loss=0.5)
    progress.advance(2)
    progress.close()
    progress.close()
    lines = [record.getMessage().strip() for record in caplog.records]
    assert lines[0] == "masking: 0/3"
    assert lines[1] == "masking: 1/3, 12 s left  loss 0.5"
    assert lines[2].startswith("masking: 3/3 in ")
    assert len(lines) == 3  # the second close says nothing


def test_a_bar_shows_its_figures_and_can_follow_another() -> None:
    screen = io.StringIO()
    progress = BarProgress(Console(file=screen, force_terminal=True, width=120))
    progress.close()
    progress.start("masking", 2)
    progress.advance(2)
    progress.start("reconstruct", 5)
    progress.advance(5, psnr=31.25)
    progress.close()
    text = screen.getvalue()
    assert "masking" in text
    assert "2/2" in text
    assert "5/5" in text
    assert "psnr 31.25" in text

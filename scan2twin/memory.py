"""How much memory a piece of work takes, and whether the kernel ended something for want of it."""

import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

_SAMPLE_S = 0.1


def out_of_memory_kills(vmstat: Path = Path("/proc/vmstat")) -> int:
    """Return how many processes the kernel has killed for want of memory since it started; 0 where it does not say."""
    try:
        match = re.search(r"^oom_kill (\d+)$", vmstat.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) if match else 0


class PeakMemory:
    """Watches the resident memory of this process, and of its children with it, while the block runs."""

    def __init__(self, *, children: bool = True) -> None:
        self._children = children
        self.start_bytes = self.peak_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self._sample()
        self.start_bytes = self.peak_bytes
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        this = psutil.Process()
        resident = this.memory_info().rss
        for child in this.children(recursive=True) if self._children else ():
            with suppress(psutil.Error):  # it has ended meanwhile
                resident += child.memory_info().rss
        self.peak_bytes = max(self.peak_bytes, resident)

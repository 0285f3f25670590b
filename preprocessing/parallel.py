"""One function over many frames, on all cores, within a fixed share of memory."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2

from scan2twin.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")

MEMORY_BUDGET_BYTES = 1 << 30  # what all workers together may hold; a stage asks a machine for 3 GiB
MAX_WORKERS = 16
CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # "<quota µs> <period µs>" or "max <period>" (cgroup v2)


def usable_cores(cgroup_cpu_max: Path = CGROUP_CPU_MAX) -> int:
    """Return how many cores this process may use: its affinity, and its container's CPU limit if it has one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cgroup_cpu_max.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def map_frames(
    function: Callable[[Item], Result], frames: Sequence[Item], progress: Progress, description: str,
    bytes_per_frame: int = 0,
) -> list[Result]:  # fmt: skip
    """Return `[function(frame) for frame in frames]`, computed in threads (OpenCV, PIL and onnxruntime drop the GIL).

    `bytes_per_frame` is what one call holds at its peak; fewer calls run at once where that is much. The first
    exception cancels the frames that have not started and is raised.
    """
    affordable = MEMORY_BUDGET_BYTES // bytes_per_frame if bytes_per_frame else MAX_WORKERS
    workers = max(1, min(usable_cores(), MAX_WORKERS, affordable))
    opencv_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the frames are the parallelism
    progress.start(description, len(frames))
    results: list[Result] = []
    try:
        with ThreadPoolExecutor(workers) as pool:
            for result in pool.map(function, frames):
                results.append(result)
                progress.advance()
    finally:
        cv2.setNumThreads(opencv_threads)
    return results

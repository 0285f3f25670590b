"""Parallel transfers: the one place where the store's threads live."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = 8  # enough to hide the round trips of small objects; more only costs memory and connections


def parallel(action: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Call `action` on every item, `THREADS` at a time, and return the results in the items' order.

    The first error is raised at once and items not yet begun are left. Log records keep the caller's context.
    """
    with ThreadPoolExecutor(THREADS, thread_name_prefix="store") as pool:
        futures = [pool.submit(copy_context().run, action, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise

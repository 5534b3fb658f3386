"""Work on all cores, in order."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def map_in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None, items_each: int = 64
) -> Iterator[Result]:
    """``work`` of each item, in order; fewer than two times ``items_each`` items, or one worker, run here.

    Processes are started afresh (no fork), so threads of this one do no harm; ``work`` and items must pickle.
    """
    count = min(workers or available_cores(), max(1, len(items) // items_each))
    if count == 1:
        yield from map(work, items)
        return
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("forkserver")) as pool:
        yield from pool.map(work, items, chunksize=max(1, items_each // 2))

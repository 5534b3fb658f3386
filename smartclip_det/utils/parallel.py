"""Ordered parallel map over processes, and work done once on rank 0."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from smartclip_det.core.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Number of CPU cores that this process may use."""
    # sched_getaffinity exists on Linux only (Python 3.13 adds process_cpu_count everywhere).
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None, items_each: int = 64
) -> Iterator[Result]:
    """Apply ``work`` to each item, in order; in this process if there is one worker or under ``2 * items_each`` items.

    Processes are not forked, so threads of this process are safe; ``work`` and the items must be picklable.
    """
    count = min(workers or available_cores(), max(1, len(items) // items_each))
    if count == 1:
        yield from map(work, items)
        return
    # Windows has no forkserver.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context(method)) as pool:
        yield from pool.map(work, items, chunksize=max(1, items_each // 2))


def on_rank_zero(make: Callable[[], Result]) -> Result:
    """Run ``make`` on rank 0 and return its result on every rank; a UserError is raised on every rank, so none hangs.

    ``make`` must not use collectives itself.
    """
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return make()
    message: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            message[0] = make()
        except UserError as error:
            message[1] = str(error)
    torch.distributed.broadcast_object_list(message, src=0)
    if message[1] is not None:
        raise UserError(message[1])
    return message[0]

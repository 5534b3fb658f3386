"""Work on all cores, in order; work of one process for all."""

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
    """Cores that this process may use."""
    # Only Linux tells those of a process (Python 3.13 does so everywhere).
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    # Windows has no forkserver.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context(method)) as pool:
        yield from pool.map(work, items, chunksize=max(1, items_each // 2))


def on_rank_zero(make: Callable[[], Result]) -> Result:
    """What ``make`` gives on rank 0, on every rank; an error of rank 0 is raised on every rank, so none waits.

    ``make`` must not meet the other processes itself.
    """
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return make()
    box: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            box[0] = make()
        except UserError as error:
            box[1] = str(error)
    torch.distributed.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise UserError(box[1])
    return box[0]

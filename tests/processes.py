"""Several processes that meet, for tests of what runs on more than one."""

from __future__ import annotations

import faulthandler
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import multiprocessing


def run_processes(function, world: int, folder: Path, *arguments) -> list[dict]:
    """``function(rank, world, *arguments)`` in each of ``world`` processes: what they return, rank by rank.

    A process that does not come to its end tells where it stands, and fails the test, instead of the suite waiting
    for it.
    """
    multiprocessing.spawn(_one, (function, world, str(folder), arguments), nprocs=world)
    return [torch.load(folder / f"returned.{rank}.pt", weights_only=True) for rank in range(world)]


def _one(rank, function, world, folder, arguments):
    faulthandler.enable()
    faulthandler.dump_traceback_later(450, exit=True)
    torch.set_num_threads(1)
    # Meeting at a file: no port that another test could take, no server that leaves before its last client.
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world, timeout=timedelta(seconds=300)
    )
    torch.save(function(rank, world, *arguments), f"{folder}/returned.{rank}.pt")
    torch.distributed.barrier()
    # Not Python's own end: gloo's threads may free tensors while it goes down, which aborts (see utils.cli).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

"""Python commands as child processes.

Importing torch and MMDetection takes longer than many a step. On Linux without a visible CUDA device, children are
therefore forked from a server that has imported them once. Neither CUDA nor the libraries of macOS survive a fork, so
elsewhere each child is a new interpreter.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

#: Imported by the server; missing ones are skipped. The first lets MMDetection be imported without compiled operators.
LIBRARIES = ("smartclip_det", "torch", "torchvision", "mmengine.runner", "mmdet.models", "mmdet.datasets")


def start_python(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Callable[[], int | None]:
    """Start Python with arguments.

    Args:
        command: arguments of Python; modules (``-m MODULE ARGUMENT ...``) are the ones that are forked.
        log: file that receives both outputs.
        environment: environment variables of the child, all of them; ``OMP_NUM_THREADS`` sets its number of threads.

    Returns:
        Function that returns the child's exit code, or None while it runs.
    """
    if command[0] != "-m" or not _can_fork():
        with log.open("w", encoding="utf-8") as handle:
            child = subprocess.Popen(
                [sys.executable, *command], stdout=handle, stderr=subprocess.STDOUT, env=dict(environment)
            )
        return child.poll
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LIBRARIES))
    # The server does not take over this process's sys.path.
    os.environ["PYTHONPATH"] = environment.get("PYTHONPATH", "")
    log.write_bytes(b"")
    process = context.Process(target=_run, args=(list(command[1:]), str(log), dict(environment), os.getcwd()))
    process.start()
    return lambda: process.exitcode


def _can_fork() -> bool:
    if sys.platform != "linux":
        return False
    import torch

    return not torch.cuda.is_available()


def _run(command: list[str], log: str, environment: dict[str, str], folder: str) -> None:
    """In the child: take over its log, environment and folder, then run the module."""
    import torch

    with open(log, "ab") as handle:
        os.dup2(handle.fileno(), 1)
        os.dup2(handle.fileno(), 2)
    sys.stdout, sys.stderr = _unowned(1), _unowned(2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # torch read OMP_NUM_THREADS when the server imported it.
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    sys.argv = command
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()


def _unowned(descriptor: int) -> IO[str]:
    return os.fdopen(descriptor, "w", buffering=1, encoding="utf-8", closefd=False)

"""Python commands as child processes.

Importing torch and MMDetection takes longer than many a step. On Linux without a visible CUDA device, children are
therefore forked from a server that has imported them once. Neither CUDA nor the libraries of macOS survive a fork, so
elsewhere each child is a new interpreter. On Linux a child ends with its parent, however that ended: two trainings
must not write to one folder.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import IO

#: Imported by the server; missing ones are skipped. The first lets MMDetection be imported without compiled operators.
LIBRARIES = ("smartclip_det", "torch", "torchvision", "mmengine.runner", "mmdet.models", "mmdet.datasets")
_STARTING = threading.Lock()
#: Option of ``prctl`` (linux/prctl.h): the signal that a process gets when its parent ends.
_PARENT_DEATH_SIGNAL = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


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
                [sys.executable, *command],
                stdout=handle,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                preexec_fn=_end_with_parent if _LIBC else None,
            )
        return child.poll
    _ensure_server(environment.get("PYTHONPATH", ""))
    log.write_bytes(b"")
    arguments = (list(command[1:]), str(log), dict(environment), os.getcwd())
    process = multiprocessing.get_context("forkserver").Process(target=_run, args=arguments)
    process.start()
    return lambda: process.exitcode


def _can_fork() -> bool:
    if sys.platform != "linux":
        return False
    import torch

    return not torch.cuda.is_available()


def _ensure_server(python_path: str) -> None:
    """Start the server if it does not run. It reads ``PYTHONPATH``, not this process's ``sys.path``."""
    forkserver.set_forkserver_preload(list(LIBRARIES))
    with _STARTING:
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = python_path
        try:
            forkserver.ensure_running()
        finally:
            del os.environ["PYTHONPATH"]
            if before is not None:
                os.environ["PYTHONPATH"] = before


def _end_with_parent() -> None:
    """Let the kernel terminate this process when its parent ends."""
    assert _LIBC is not None
    _LIBC.prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _end_with_starter() -> None:
    """Terminate this forked child when the process that asked for it ends; the server, its parent, lives on."""
    starter = multiprocessing.parent_process()
    assert starter is not None
    starter.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _run(command: list[str], log: str, environment: dict[str, str], folder: str) -> None:
    threading.Thread(target=_end_with_starter, daemon=True).start()
    become(log, log, environment, folder)
    sys.argv = command
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()


def become(out: str, err: str, environment: Mapping[str, str], folder: str) -> None:
    """In a forked child: take over outputs, environment, number of threads and folder of a new process.

    Args:
        out: file to which standard output is appended.
        err: file to which standard error is appended.
        environment: environment variables, all of them.
        folder: working folder.
    """
    import torch

    for descriptor, path in ((1, out), (2, err)):
        with open(path, "ab") as handle:
            os.dup2(handle.fileno(), descriptor)
    sys.stdout, sys.stderr = _unowned(1), _unowned(2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # torch read OMP_NUM_THREADS when the server imported it.
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))


def _unowned(descriptor: int) -> IO[str]:
    return os.fdopen(descriptor, "w", buffering=1, encoding="utf-8", closefd=False)

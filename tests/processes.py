"""Run tests in separate processes: a tool with arguments, or several ranks.

Both are forked from one server per pytest worker, which has already imported the libraries, because importing
MMDetection takes longer than most tools run.
"""

from __future__ import annotations

import faulthandler
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import multiprocessing

from smartclip_det.utils.child_processes import LIBRARIES, become

REPO = Path(__file__).resolve().parents[1]
TIMEOUT = 560


def _server() -> multiprocessing.context.BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LIBRARIES))
    return context


def free_port() -> int:
    """An unused TCP port of the loopback address."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_process(*args, cwd=REPO, env=None) -> SimpleNamespace:
    """Run a tool (``.py``) or shell script (``.sh``): its exit code and both outputs."""
    command = [str(a) for a in args]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(REPO),
        "MASTER_PORT": str(free_port()),
        **(env or {}),
    }
    if command[0].endswith(".sh"):
        return subprocess.run(
            ["bash", *command],
            capture_output=True,
            text=True,
            cwd=cwd,
            env=environment,
            check=False,
            timeout=TIMEOUT,
        )
    with tempfile.TemporaryDirectory() as folder:
        process = _server().Process(target=_tool, args=(command, str(cwd), environment, folder))
        process.start()
        process.join(TIMEOUT)
        late = process.exitcode is None
        if late:
            process.kill()
            process.join()
        out, err = (_text(Path(folder) / name) for name in ("out", "err"))
        if late:
            raise subprocess.TimeoutExpired(command, TIMEOUT, out, err)
    return SimpleNamespace(returncode=process.exitcode, stdout=out, stderr=err)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _tool(command: list[str], cwd: str, environment: dict[str, str], folder: str) -> None:
    os.setsid()  # a tool may kill its whole group
    become(f"{folder}/out", f"{folder}/err", environment, cwd)
    script = str(Path(cwd) / command[0])
    sys.argv = [script, *command[1:]]
    sys.path[0:0] = [str(Path(script).parent)]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        sys.stdout.flush()


def run_processes(function, world: int, folder: Path, *arguments) -> list[dict]:
    """Run ``function(rank, world, *arguments)`` in ``world`` processes; their return values by rank.

    A process that hangs prints its stack and fails the test, so that the suite does not wait for it.
    """
    _server()
    multiprocessing.start_processes(
        _one, (function, world, str(folder), arguments), nprocs=world, start_method="forkserver"
    )
    return [torch.load(folder / f"returned.{rank}.pt", weights_only=True) for rank in range(world)]


def _one(rank, function, world, folder, arguments):
    faulthandler.enable()
    faulthandler.dump_traceback_later(450, exit=True)
    torch.set_num_threads(1)
    # Rendezvous by file: no port that another test could take, no server that exits before its last client.
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world, timeout=timedelta(seconds=300)
    )
    torch.save(function(rank, world, *arguments), f"{folder}/returned.{rank}.pt")
    torch.distributed.barrier()
    # Skip Python's own shutdown: gloo's threads may free tensors during it, which aborts (see utils.cli).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

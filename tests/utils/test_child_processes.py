"""Forked children and new interpreters do the same: output, environment, threads, folder, exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from smartclip_det.utils import child_processes
from smartclip_det.utils.child_processes import start_python
from smartclip_det.utils.steps import python_path

MODULE = """
import json, os, sys, torch
loaded = "mmdet.models" in sys.modules
print(json.dumps([sys.argv[1:], os.environ["GIVEN"], "REMOVED" in os.environ, torch.get_num_threads(), os.getcwd()]))
print(json.dumps(loaded))
print("to the other output", file=sys.stderr)
sys.exit(3)
"""


@pytest.mark.parametrize("forked", [True, False])
def test_a_child_is_the_same_forked_or_new(monkeypatch, tmp_path, forked):
    (tmp_path / "a_module_of_the_test.py").write_text(MODULE)
    environment = {**os.environ, "GIVEN": "a=b", "OMP_NUM_THREADS": "2"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), python_path()])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("REMOVED", "1")
    monkeypatch.setattr(child_processes, "_can_fork", lambda: forked)
    log = tmp_path / "log"
    log.write_text("an earlier run")
    exit_code = start_python(["-m", "a_module_of_the_test", "x", "--y"], log, environment)
    wait_for(lambda: exit_code() is not None)
    assert exit_code() == 3
    seen, loaded, error = log.read_text().splitlines()
    assert json.loads(seen) == [["x", "--y"], "a=b", False, 2, os.getcwd()]
    assert error == "to the other output"
    # Why there is a server at all.
    assert json.loads(loaded) is forked


PARENT = """
import os, sys, time
from pathlib import Path
from smartclip_det.utils import child_processes

child_processes._can_fork = lambda: {forked}
child_processes.LIBRARIES = ()
sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
exit_code = child_processes.start_python(
    ["-m", "timeit", "-n", "1", "-r", "1", sleeper], Path(sys.argv[1]), dict(os.environ)
)
time.sleep(1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the signal of a parent's death is Linux's")
@pytest.mark.parametrize("forked", [True, False])
def test_a_child_ends_with_its_killed_parent(tmp_path, forked):
    log = tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": python_path()}
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(forked=forked), str(log)], env=environment)
    child = None
    try:
        assert wait_for(lambda: log.is_file() and log.read_text().strip().isdigit())
        child = Path("/proc") / log.read_text().strip()
        assert child.is_dir()
        parent.kill()
        parent.wait()
        # A dead process that nobody waits for stays as a zombie.
        assert wait_for(lambda: not child.is_dir() or "State:\tZ" in (child / "status").read_text())
    finally:
        parent.kill()
        if child is not None and child.is_dir():
            os.kill(int(child.name), signal.SIGKILL)


def wait_for(done, seconds=120):
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        time.sleep(0.05)
    return done()


def test_neither_cuda_nor_macos_is_forked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not child_processes._can_fork()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not child_processes._can_fork()

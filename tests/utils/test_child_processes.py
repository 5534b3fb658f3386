"""Forked children and new interpreters do the same: output, environment, threads, folder, exit code."""

from __future__ import annotations

import json
import os
import sys
import time

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
    until = time.monotonic() + 120
    while exit_code() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert exit_code() == 3
    seen, loaded, error = log.read_text().splitlines()
    assert json.loads(seen) == [["x", "--y"], "a=b", False, 2, os.getcwd()]
    assert error == "to the other output"
    # Why there is a server at all.
    assert json.loads(loaded) is forked


def test_neither_cuda_nor_macos_is_forked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not child_processes._can_fork()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not child_processes._can_fork()

"""The GPU checks: on the CPU that they run and can fail, on a GPU (``pytest -m gpu``) that they pass."""

from __future__ import annotations

import json

import pytest
import torch

from tests.tools.test_runs import run

TOOL = "tools/analysis/gpu_check.py"


@pytest.mark.slow
def test_the_checks_run_without_a_gpu(tmp_path):
    command = [TOOL, "--device", "cpu", "--arch", "SmartCLIP-tiny", "--batch", "8", "--big", "64", "--batches", "4", "8",
               "--train-images", "8", "--out", tmp_path / "c.json"]  # fmt: skip
    run(*command)
    content = json.loads((tmp_path / "c.json").read_text())
    found = content["metrics"]
    assert found["whole_run"]["steps"] > 0
    assert set(found["steps"]["steps"]) == {"4", "8"}
    for name in ("two-stage", "one-stage", "referring"):
        assert found[name]["relative_difference"] == 0
        assert found[name]["waits"] is None
    # A call that was cut off goes on with what is missing, and with what failed.
    del content["metrics"]["waits"]
    content["metrics"]["parity"]["passed"] = False
    (tmp_path / "c.json").write_text(json.dumps(content))
    told = run(*command).stdout
    assert told.count("(done before)") == len(found) - 2
    again = json.loads((tmp_path / "c.json").read_text())["metrics"]
    assert again.keys() == found.keys()
    assert again["steps"] == found["steps"]
    assert again["parity"]["passed"]
    found = again
    assert found["parity"]["relative_difference"] == 0
    assert found["mixed_precision"]["gradient_cosine"] < 1
    assert all(f["passed"] for f in found.values())
    if not torch.cuda.is_available():
        done = run(TOOL, "--out", tmp_path / "d.json", check=False)
        assert done.returncode == 2
        assert "No CUDA device" in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_agrees_with_the_cpu(tmp_path):
    run(TOOL, "--batch", "32", "--big", "8192", "--out", tmp_path / "c.json")
    found = json.loads((tmp_path / "c.json").read_text())["metrics"]
    assert all(f["passed"] for f in found.values()), found

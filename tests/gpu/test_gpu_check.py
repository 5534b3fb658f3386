"""The GPU checks: on the CPU, that they run and can fail; on a GPU (``pytest -m gpu``), that they pass."""

from __future__ import annotations

import json

import pytest
import torch

from smartclip_det.core.errors import UserError
from smartclip_det.studies import gpu_check
from smartclip_det.studies.gpu_check import GpuCheckOptions, check_gpu
from smartclip_det.studies.gpu_runs import STEPS
from tests.tools.test_runs import run

TOOL = "tools/analysis/gpu_check.py"


@pytest.mark.slow
def test_the_checks_run_without_a_gpu_and_go_on_where_they_were_cut_off(tmp_path, capsys):
    task = GpuCheckOptions("cpu", "SmartCLIP-tiny", batch=8, big=64, batches=(4, 8), out=tmp_path / "c.json")
    assert check_gpu(task)
    content = json.loads(task.out.read_text())
    found = json.loads(task.out.read_text())["metrics"]
    assert all(f["passed"] for f in found.values())
    assert found["parity"]["relative_difference"] == 0
    assert found["mixed_precision"]["gradient_cosine"] < 1
    assert set(found["steps"]["steps"]) == {"4", "8"}
    for name in ("two-stage", "one-stage", "referring", "grounding-dino"):
        assert found[name]["relative_difference"] == 0
        assert found[name]["waits"] is None
    assert 0 < found["busy"]["busy_share"] <= 1
    assert found["compiled"]["backend"] == "aot_eager"
    assert 0 < found["run"]["killed_after"] < found["run"]["steps"] == STEPS
    assert found["run"]["images_per_second"] > 0
    assert found["torchrun"]["processes"] == 1
    # An interrupted call resumes with the missing and the failed stages.
    del content["metrics"]["waits"]
    content["metrics"]["parity"]["passed"] = False
    task.out.write_text(json.dumps(content))
    capsys.readouterr()
    assert check_gpu(task)
    assert capsys.readouterr().out.count("(from an earlier run)") == len(found) - 2
    again = json.loads(task.out.read_text())["metrics"]
    assert again.keys() == found.keys()
    assert again["steps"] == found["steps"]
    # Other options give other results.
    assert gpu_check._done(task.out, {"arch": "SmartCLIP-toy"}, content["protocol"]["code"]) == {}
    assert gpu_check._done(task.out, {"arch": "SmartCLIP-tiny"}, "another") == {}


def test_busy_time_counts_overlapping_kernels_once():
    assert gpu_check.covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.5)]) == 4
    assert gpu_check.covered([]) == 0


def test_without_a_gpu_the_cpu_has_to_be_named(tmp_path):
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="No CUDA device"):
            check_gpu(GpuCheckOptions(out=tmp_path / "d.json"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_agrees_with_the_cpu(tmp_path):
    run(TOOL, "--batch", "32", "--big", "8192", "--out", tmp_path / "c.json")
    found = json.loads((tmp_path / "c.json").read_text())["metrics"]
    assert all(f["passed"] for f in found.values()), found

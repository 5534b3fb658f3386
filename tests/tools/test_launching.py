"""Launching runs: mixed precision by name, Slurm options, tools of a checkout that is not installed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config

from smartclip_det.core.errors import UserError
from smartclip_det.engine import launch
from smartclip_det.engine.config import load_config
from tests.conftest import REPO


def wrapper(precision="auto", **options):
    config = Config({"optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.1}, **options}})
    launch.enable_amp(config, precision)
    return config.optim_wrapper


@pytest.mark.parametrize(
    ("cuda", "has_bf16", "asked", "found"),
    [
        (True, True, "auto", "BFloat16OptimWrapper"),
        (True, False, "auto", "AmpOptimWrapper"),
        (True, True, "fp16", "AmpOptimWrapper"),
        (True, False, "bf16", "BFloat16OptimWrapper"),
        (False, False, "auto", "BFloat16OptimWrapper"),
        (False, False, "bf16", "BFloat16OptimWrapper"),
    ],
)
def test_mixed_precision_is_bf16_where_the_card_has_it_and_fp16_by_name(monkeypatch, cuda, has_bf16, asked, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(launch, "bf16_pays", lambda device: has_bf16)
    # Options of the other wrapper are removed.
    for before in ("OptimWrapper", "AmpOptimWrapper", "BFloat16OptimWrapper"):
        given = wrapper(asked, type=before, **({"loss_scale": 512.0, "dtype": "float16"} if "Amp" in before else {}))
        assert given.type == found
        assert given.get("dtype") == ("float16" if found == "AmpOptimWrapper" else None)
        assert given.get("loss_scale") == ("dynamic" if found == "AmpOptimWrapper" else None)


def test_precisions_that_cannot_be_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="fp16 needs a CUDA device"):
        wrapper("fp16")
    with pytest.raises(UserError, match="does not support"):
        wrapper(type="DeepSpeedOptimWrapper")
    with pytest.raises(UserError, match="Nearest: bf16"):
        wrapper("bf61")


def srun(tmp_path, *options, **environment):
    """Arguments received by a stand-in for ``srun``."""
    fake = tmp_path / "srun"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["bash", "tools/slurm_train.sh", "part", "job", "config.py", *options],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": sys.executable, **environment},
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("gpus", "per_node", "asked"), [("4", None, 4), ("8", None, 8), ("16", None, 8), ("8", "4", 4), ("2", "4", 2)]
)
def test_slurm_is_asked_for_the_gpus_that_were_named(tmp_path, gpus, per_node, asked):
    given = srun(tmp_path, GPUS=gpus, **({"GPUS_PER_NODE": per_node} if per_node else {}))
    assert f"--gres=gpu:{asked}" in given
    assert f"--ntasks={gpus}" in given
    assert f"--ntasks-per-node={asked}" in given


def test_slurm_gives_each_worker_a_core(tmp_path):
    most = 0
    for path in (REPO / "configs").rglob("*.py"):
        if "_base_" not in path.parts and path.parent.name not in ("stock_detectors", "smartclip_refexp"):
            most = max(most, (load_config(path).get("train_dataloader") or {}).get("num_workers", 0))
    assert f"--cpus-per-task={most + 1}" in srun(tmp_path)
    assert "--cpus-per-task=4" in srun(tmp_path, "--cfg-options", "train_dataloader.num_workers=3")
    assert "--cpus-per-task=20" in srun(tmp_path, CPUS_PER_TASK="20")


@pytest.mark.slow
def test_tools_of_a_checkout_need_no_python_path(tmp_path):
    """As on a machine with only a checkout and wheels: ``-I`` ignores PYTHONPATH and the current folder."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for tool in ("train.py", "analysis/gpu_check.py", "data/make_toy.py"):
        done = subprocess.run(
            [sys.executable, "-I", REPO / "tools" / tool, "--help"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    for path in (REPO / "tools").rglob("*.py"):
        assert "sys.path.insert(0, str(Path(__file__).resolve().parents[" in path.read_text(), path


def test_strategies_that_cannot_run_here_are_refused(monkeypatch):
    def asked(name, launcher="pytorch"):
        launch.check_strategy(Config({"strategy": {"type": name}, "launcher": launcher}))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    launch.check_strategy(Config({"launcher": "none"}))
    asked("FSDPStrategy")
    asked("SingleDeviceStrategy", "none")
    with pytest.raises(UserError, match="needs several processes"):
        asked("FSDPStrategy", "none")
    with pytest.raises(UserError, match="needs CUDA devices"):
        asked("DeepSpeedStrategy")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"smartclip_det\[deepspeed\]"):
        asked("DeepSpeedStrategy")


@pytest.mark.parametrize(
    ("path", "constructor"),
    [
        ("ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py", "FusedConstructor"),
        ("smartclip_align/smartclip-b16_1024-3e_sharegpt4v.py", "NamedGroupsConstructor"),
    ],
)
def test_optimizers_of_all_trainings_are_built_by_constructors_that_fuse_on_cards(tmp_path, path, constructor):
    from mmengine.optim import build_optim_wrapper

    from smartclip_det.engine import alignment_optim  # noqa: F401
    from tests.pretended import PretendedCard

    config = load_config(path)
    launch.prepare(config, path, str(tmp_path), "none")
    assert config.optim_wrapper.constructor.endswith(constructor)
    model = torch.nn.Module()
    model.towers = torch.nn.ModuleDict({"mask_network": torch.nn.Linear(2, 2), "other": torch.nn.Linear(2, 2)})
    with PretendedCard():
        wrapper = build_optim_wrapper(model.to("cuda"), config.optim_wrapper)
    assert all(g["fused"] for g in wrapper.param_groups)
    assert wrapper.param_groups[0]["lr"] in (1e-3, 1e-4)

"""The alignment recipe through the tools: groups and schedule, exact resume after a kill, unreadable images."""

from __future__ import annotations

import json
import math
import re
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.engine.atomic_files import last_good_checkpoint
from smartclip_det.engine.config import load_config
from smartclip_det.engine.launch import fit_global_batch
from smartclip_det.utils.safe_load import safe_torch_load
from tests.conftest import REPO
from tests.processes import run_process
from tests.tools.test_runs import run

CONFIG = "configs/smartclip_align/smartclip-b16_1024-3e_sharegpt4v.py"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for n in range(22):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(root / f"{n:02d}.png")
        (root / f"{n:02d}.txt").write_text(
            f"Picture number {n}. It shows noise of kind {n % 5}. Nothing else is in it."
        )
    return root


def options(pairs, **more):
    """22 images in global batches of 8: 3 steps per epoch, the last with 6 images."""
    given = {
        "towers.arch": "SmartCLIP-tiny",
        "towers.mask_pad": "ignore",
        "global_batch_size": 8,
        "model.micro_batch": 0,
        "train_dataloader.dataset.ann_file": str(pairs),
        "train_dataloader.dataset.data_root": "",
        "train_dataloader.dataset.skip": 0,
        "train_dataloader.dataset.images.size": 64,
        "train_dataloader.dataset.texts.context_length": 77,
        "train_dataloader.num_workers": 1,
        "train_dataloader.pin_memory": False,
        "val_dataloader.dataset.ann_file": str(pairs),
        "val_dataloader.dataset.data_root": "",
        "val_dataloader.dataset.indices": 8,
        "val_dataloader.dataset.images.size": 64,
        "val_dataloader.num_workers": 0,
        "default_hooks.checkpoint.interval": 2,
        "default_hooks.logger.interval": 1,
        "param_scheduler.warmup": 2,
        "train_cfg.max_epochs": 2,
        "model.loss.mask_mode": "hard_concrete",
        # fp32 on every machine, because precision is not under test.
        "optim_wrapper.type": "OptimWrapper",
        **more,
    }
    return ["--cfg-options", *(f"{k}={v}" for k, v in given.items())]


def losses(folder):
    """Loss of each step, from MMEngine's scalars of all starts in a work folder."""
    rows = [
        json.loads(line) for f in sorted(folder.glob("*/vis_data/scalars.json")) for line in f.read_text().splitlines()
    ]
    return {r["step"]: r["loss"] for r in rows if "loss" in r}


def weights(path):
    return safe_torch_load(path)["state_dict"]


KILLED_WHILE_WRITING = """
import os, runpy, signal, sys
from pathlib import Path
from smartclip_det.engine import atomic_files
whole = atomic_files.AtomicLocalBackend.put
def put(self, obj, filepath):
    if str(filepath).endswith('iter_4.pth'):
        part = Path(str(filepath) + '.part')
        part.write_bytes(obj[: len(obj) // 2])
        os.killpg(os.getpgrp(), signal.SIGKILL)
    whole(self, obj, filepath)
atomic_files.AtomicLocalBackend.put = put
sys.argv = sys.argv[1:]
runpy.run_path('tools/train.py', run_name='__main__')
"""


@pytest.mark.slow
def test_a_run_killed_while_it_writes_goes_on_as_if_nothing_had_been(pairs, tmp_path):
    run("tools/train.py", CONFIG, "--work-dir", tmp_path / "whole", *options(pairs))
    killed = tmp_path / "killed"
    (tmp_path / "killed.py").write_text(KILLED_WHILE_WRITING)
    done = run_process(
        tmp_path / "killed.py",
        "tools/train.py",
        CONFIG,
        "--work-dir",
        killed,
        *options(pairs, **{"train_dataloader.num_workers": 2}),
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (killed / "iter_4.pth.part").is_file()
    assert last_good_checkpoint(killed).name == "iter_2.pth"
    found = run(
        "tools/train.py",
        CONFIG,
        "--work-dir",
        killed,
        "--resume",
        *options(pairs, **{"train_dataloader.num_workers": 3}),
    )
    assert "iter_2.pth" in found.stdout + found.stderr
    expected, own = weights(tmp_path / "whole/iter_6.pth"), weights(killed / "iter_6.pth")
    assert expected.keys() == own.keys()
    assert all(torch.equal(expected[k], own[k]) for k in expected)
    before, after = losses(tmp_path / "whole"), losses(killed)
    assert set(before) == set(after) == {1, 2, 3, 4, 5, 6}
    assert before == after


def test_the_last_good_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        last_good_checkpoint(tmp_path)
    for n in (2, 10):
        (tmp_path / f"iter_{n}.pth").write_bytes(b"")
    (tmp_path / "last_checkpoint").write_text("")
    assert last_good_checkpoint(tmp_path).name == "iter_10.pth"
    (tmp_path / "last_checkpoint").write_text("/moved/since/iter_2.pth")
    assert last_good_checkpoint(tmp_path).name == "iter_2.pth"


@pytest.mark.slow
def test_broken_images_are_counted_and_stop_a_run_only_when_they_are_many(pairs, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for p in pairs.iterdir():
        (broken / p.name).write_bytes(b"x" if p.name == "03.png" else p.read_bytes())
    more = {"train_cfg.max_epochs": 1, "val_dataloader.dataset.indices": 3}
    done = run("tools/train.py", CONFIG, "--work-dir", tmp_path / "run", *options(broken, **more))
    log = done.stdout + done.stderr
    assert "03.png cannot be read" in log
    assert "1 of 22 samples were replaced" in log
    many = options(
        broken, **more, **{"custom_hooks.1.limit": 0.01, "custom_hooks.1.after": 22, "custom_hooks.1.every": 1}
    )
    done = run("tools/train.py", CONFIG, "--work-dir", tmp_path / "many", *many, check=False)
    assert done.returncode == 2
    assert "more than the limit of 1.0%" in done.stderr
    assert (tmp_path / "many/iter_3.pth").is_file()


@pytest.mark.slow
def test_long_texts_and_a_slow_loader_are_told_and_another_model_is_refused(pairs, tmp_path):
    more = {
        "train_dataloader.dataset.texts.context_length": 8,
        "custom_hooks.3.after": 1,
        "custom_hooks.3.share": 0.0,
        "train_cfg.max_epochs": 1,
    }
    done = run("tools/train.py", CONFIG, "--work-dir", tmp_path / "run", *options(pairs, **more))
    log = done.stdout + done.stderr
    # Every prefix has at least "Picture number N", 8 tokens or more; the first sentence has 5.
    assert re.search(r"\d+ of 22 texts \(\d+\.\d%\) exceeded the token limit and were cut", log)
    assert "limited by the data loader" in log
    other = options(pairs, **more, **{"model.towers.arch": "SmartCLIP-toy"})
    done = run("tools/train.py", CONFIG, "--work-dir", tmp_path / "run", "--resume", *other, check=False)
    assert done.returncode == 2
    assert "does not match the model of this config" in done.stderr
    done = run("tools/train.py", CONFIG, "--work-dir", tmp_path / "new", "--resume", *options(pairs), check=False)
    assert done.returncode == 2
    assert "no checkpoint in" in done.stderr
    fsdp = "configs/smartclip_align/smartclip-b16_fsdp_1024-3e_sharegpt4v.py"
    done = run("tools/train.py", fsdp, "--work-dir", tmp_path / "fsdp", *options(pairs), check=False)
    assert "needs several processes" in done.stderr
    one = options(pairs, **more, **{"strategy.type": "SingleDeviceStrategy"})
    run("tools/train.py", CONFIG, "--work-dir", tmp_path / "flexible", *one)
    assert weights(tmp_path / "flexible/iter_3.pth").keys() == weights(tmp_path / "run/iter_3.pth").keys()


def test_a_batch_of_one_has_nothing_to_tell_apart():
    from smartclip_det.models.losses import AlignmentLoss

    given = [torch.randn(1, 8, requires_grad=True) for _ in range(3)]
    losses = AlignmentLoss()(*given, torch.zeros(()))
    assert losses["loss_sidm"].item() == losses["loss_dism"].item() == 0
    (losses["loss_sidm"] + losses["loss_sparsity"]).backward()
    assert all(torch.isfinite(x.grad).all() for x in given if x.grad is not None)


def test_the_released_recipe_number_by_number():
    """Parameter groups and schedule of SmartCLIP's released recipe (arXiv 2507.22264)."""
    from mmengine.registry import MODELS, PARAM_SCHEDULERS

    from smartclip_det import register_alignment  # noqa: F401
    from smartclip_det.engine.alignment_optim import NamedGroupsConstructor

    config = load_config(REPO / CONFIG, {"towers.arch": "SmartCLIP-tiny"})
    model = MODELS.build(config.model)
    wrapper = dict(config.optim_wrapper)
    constructor = NamedGroupsConstructor(
        {k: v for k, v in wrapper.items() if k not in ("constructor", "paramwise_cfg")}, wrapper["paramwise_cfg"]
    )
    optim = constructor(model)
    groups = {g["name"]: g for g in optim.optimizer.param_groups}
    assert {n: (g["lr"], g["weight_decay"]) for n, g in groups.items()} == {
        "mask_network": (1e-3, 0.0),
        "rest": (1e-6, 1e-2),
    }
    assert optim.optimizer.defaults["betas"] == (0.9, 0.999)
    assert sum(len(g["params"]) for g in groups.values()) == sum(p.requires_grad for p in model.parameters())
    scheduler = PARAM_SCHEDULERS.build({**config.param_scheduler, "end": 3651}, default_args={"optimizer": optim})
    seen = {name: [] for name in groups}
    for _ in range(3651):
        for name, g in groups.items():
            seen[name].append(g["lr"])
        optim.optimizer.step()
        scheduler.step()
    towers, masks = seen["rest"], seen["mask_network"]
    assert towers[0] == pytest.approx(1e-6 / 200)
    assert towers[199] == pytest.approx(1e-6)
    assert towers[200] == pytest.approx(1e-6)
    middle = 0.5 * (1 + math.cos(math.pi * (1925 - 200) / (3651 - 200)))
    assert towers[1925] == pytest.approx(1e-6 * middle)
    assert masks[0] == pytest.approx(1e-3)
    assert masks[3650] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * 3650 / 3651)))
    assert config.train_cfg.max_epochs == 3
    assert config.model.loss == {
        "mask_mode": "hard",
        "modular": True,
        "scale": 100.0,
        "alignment_weight": 10.0,
        "sparsity_weight": 2.0,
    }
    assert -(-(1_246_901 - config.train_dataloader.dataset.skip) // config.global_batch_size) == 1217


def test_position_rows_of_a_stretched_tower_that_are_trained():
    from smartclip_det.models.alignment import SmartCLIPAlignment
    from smartclip_det.models.towers import SmartCLIP
    from smartclip_det.models.towers.config import architecture

    torch.manual_seed(0)
    towers = SmartCLIP(architecture("SmartCLIP-tiny").with_(context_length=248, stretched=True))
    assert not towers.text_tower.positional_embedding.requires_grad
    model = SmartCLIPAlignment({"arch": "SmartCLIP-tiny"})
    model.towers = towers
    tokens = towers.tokenize(["a red heart " * 30, "a star"])
    towers.forward_text(tokens).embeds.sum().backward()
    moved = towers.text_tower.positional_embedding_res.grad.abs().sum(dim=1) > 0
    assert not moved[:20].any()
    assert moved[20:60].all()


@pytest.mark.parametrize(
    ("launcher", "variable", "world", "each"),
    [("none", "", 1, 1024), ("pytorch", "WORLD_SIZE", 4, 256), ("slurm", "SLURM_NTASKS", 8, 128)],
)
def test_the_joint_batch_is_shared_out(monkeypatch, launcher, variable, world, each):
    if variable:
        monkeypatch.setenv(variable, str(world))
    config = load_config(REPO / CONFIG)
    fit_global_batch(config, launcher)
    assert config.train_dataloader.batch_size == each


def test_a_batch_size_that_the_joint_one_would_replace_is_refused():
    own = {"train_dataloader.batch_size": 256}
    with pytest.raises(UserError, match=r"=256 has no effect.* global_batch_size=1024 .*Override global_batch_size"):
        load_config(REPO / CONFIG, own)
    assert load_config(REPO / CONFIG, {**own, "global_batch_size": None}).train_dataloader.batch_size == 256


def test_what_cannot_be_shared_out_or_grouped_is_refused(monkeypatch):
    from smartclip_det.engine.alignment_optim import NamedGroupsConstructor, WarmupCosineLR
    from smartclip_det.models.alignment import SmartCLIPAlignment

    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="is not a multiple of 3 processes"):
        fit_global_batch(load_config(REPO / CONFIG), "pytorch")
    wrapper = {"optimizer": {"type": "SGD", "lr": 0.1}}
    with pytest.raises(UserError, match="Optimizer groups without trained parameters: masks"):
        NamedGroupsConstructor(wrapper, {"groups": {"masks": {"prefixes": ["mask."]}}})(torch.nn.Linear(2, 2))
    for given in (None, -1, 0.5):
        with pytest.raises(UserError, match=rf"model\.micro_batch must be a whole number .*given {given}"):
            SmartCLIPAlignment({"arch": "SmartCLIP-tiny"}, micro_batch=given)
    with pytest.raises(UserError, match="groups=dict"):
        NamedGroupsConstructor(wrapper, {"custom_keys": {}})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(UserError, match=r"10 steps is too long for .* Set param_scheduler\.warmup"):
        WarmupCosineLR(optimizer, warmup=10, end=10, by_epoch=False)
    with pytest.raises(UserError, match="by_epoch=False"):
        WarmupCosineLR(optimizer, end=10)


@pytest.mark.slow
def test_the_cache_tool_fills_verifies_and_finds_a_wrong_row(pairs, tmp_path):
    given = options(pairs, **{"train_cfg.max_epochs": 1})
    done = run("tools/data/cache_images.py", CONFIG, "--out", tmp_path / "cache", "--workers", "2", *given)
    assert "22 of 22 images ready, 0 could not be read" in done.stdout
    done = run("tools/data/cache_images.py", CONFIG, "--out", tmp_path / "cache", "--verify", "22", *given)
    assert "22 rows match their images" in done.stdout
    with (tmp_path / "cache/images.u8").open("r+b") as handle:
        handle.seek(5 * 3 * 64 * 64)
        handle.write(b"\x01\x02\x03")
    done = run("tools/data/cache_images.py", CONFIG, "--out", tmp_path / "cache", "--verify", "22", *given, check=False)
    assert done.returncode == 2
    assert "Row 5 of the cache" in done.stderr

"""Training on two processes (gloo): DDP equals one process, features of multi-GPU runs, FSDP with its checkpoints.

One start of two processes runs everything; the tests look at what it left.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smartclip_det.apis.running import TrainOptions, train
from smartclip_det.core.errors import UserError
from smartclip_det.models.towers import SmartCLIP
from smartclip_det.utils.safe_load import safe_torch_load
from tests.conftest import REPO
from tests.processes import run_processes

pytestmark = [pytest.mark.slow, pytest.mark.dist]
RECIPE = REPO / "configs/smartclip_align/smartclip-b16_1024-3e_sharegpt4v.py"
FSDP = REPO / "configs/smartclip_align/smartclip-b16_fsdp_1024-3e_sharegpt4v.py"
STEPS = 3  # 21 images in global batches of 8: the last has 5, 2 on one process and 3 on the other


def options(root: Path, **more):
    data = {"ann_file": f"{root}/pairs", "data_root": "", "images.size": 64}
    loader = {"num_workers": 0, "persistent_workers": False, "pin_memory": False}
    return {
        "towers.arch": "SmartCLIP-tiny",
        "towers.mask_pad": "ignore",
        "global_batch_size": 8,
        # A learned scale is a scalar parameter.
        "model.micro_batch": 2,
        "model.loss.mask_mode": "soft",
        "model.loss.scale": "learned",
        **{f"train_dataloader.dataset.{k}": v for k, v in data.items()},
        "train_dataloader.dataset.skip": 0,
        "train_dataloader.dataset.texts.context_length": 77,
        **{f"train_dataloader.{k}": v for k, v in loader.items()},
        **{f"val_dataloader.dataset.{k}": v for k, v in data.items()},
        "val_dataloader.dataset.indices": 8,
        "val_dataloader.num_workers": 0,
        "val_evaluator.scoring": "hard",
        "default_hooks.checkpoint.interval": 2,
        "default_hooks.logger.interval": 1,
        "param_scheduler.warmup": 2,
        "param_scheduler.end": STEPS,
        "train_cfg.max_epochs": 1,
        "train_cfg.val_begin": 99,
        "randomness.seed": 3,
        # bf16, which some CPUs support, would hide differences. Far above the round-off of gradients that are exactly zero (key biases).
        "optim_wrapper.type": "OptimWrapper",
        "optim_wrapper.optimizer.eps": 1e-3,
        **more,
    }


def go(root, name, config, launcher, resume=None, **more):
    # MMEngine identifies the runs of a process by name.
    own = f"{Path(root).parent.name}_{name}_{resume is not None}"
    given = options(root, experiment_name=own, **{"visualizer.name": own}, **more)
    train(
        TrainOptions(config=str(config), work_dir=f"{root}/{name}", cfg_options=given, launcher=launcher, resume=resume)
    )


#: Variants of the recipe for which one and two processes must agree.
SAME = {
    "plain": {},
    "averaged": {
        "optim_wrapper.accumulative_counts": 2,
        "auto_scale_lr.base_batch_size": 16,
        "auto_scale_lr.enable": True,
    },
}


def config_of(name, root):
    return f"{root}/averaged.py" if name == "averaged" else RECIPE


def several(rank, world, root):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    for name, more in SAME.items():
        go(root, f"two/{name}", config_of(name, root), "pytorch", **more)
    # A running mean resumes.
    go(
        root,
        "two/averaged_again",
        config_of("averaged", root),
        "pytorch",
        resume=f"{root}/two/averaged/iter_2.pth",
        **SAME["averaged"],
    )
    for form in ("local", "full"):
        # Validation with FSDP equals validation without, so it runs once.
        more = {"strategy.state_dict_cfg": form, "train_cfg.val_begin": 1 if form == "local" else 99}
        go(root, f"fsdp/{form}", f"{root}/fsdp.py", "pytorch", **more)
        go(root, f"fsdp/{form}_again", f"{root}/fsdp.py", "pytorch", resume=f"{root}/fsdp/{form}/iter_2.pth", **more)
    told = {}
    for what, more in (("clip", {"optim_wrapper.clip_grad.max_norm": 1.0}), ("form", {})):
        try:
            go(
                root,
                f"fsdp/{what}",
                f"{root}/fsdp.py",
                "pytorch",
                resume=f"{root}/fsdp/full/iter_2.pth" if what == "form" else None,
                **more,
            )
        except UserError as error:
            told[what] = str(error)
    return told


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    (root / "pairs").mkdir()
    rng = np.random.default_rng(0)
    for n in range(21):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(root / f"pairs/{n:02d}.png")
        (root / f"pairs/{n:02d}.txt").write_text(f"Picture number {n}. It shows noise of kind {n % 5}. No more.")
    boxes = [
        {
            "id": n + 1,
            "image_id": n + 1,
            "category_id": n % 2 + 1,
            "bbox": [4 + n, 8, 30, 40],
            "area": 1200,
            "iscrowd": 0,
        }
        for n in range(4)
    ]
    images = [{"id": n + 1, "file_name": f"{n:02d}.png", "width": 64, "height": 64} for n in range(4)]
    (root / "boxes.json").write_text(
        json.dumps(
            {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}]}
        )
    )
    hooks = "custom_hooks = [dict(type='StepSeedHook'), dict(type='TowerCheckpointHook'), {}]\n"
    # Hooks that use the towers between steps: on all processes (vocabularies), and on rank 0 only (boxes).
    probe = (
        f"dict(type='RegionProbeHook', ann_file='{root}/boxes.json', images='{root}/pairs', max_images=4, "
        "dense_size=64, views=['dense'])"
    )
    for name, base, hook in (("averaged", RECIPE, "dict(type='EMAHook', momentum=0.3)"), ("fsdp", FSDP, probe)):
        (root / f"{name}.py").write_text(f"_base_ = '{base}'\n{hooks.format(hook)}")
    for name, more in SAME.items():
        go(root, f"one/{name}", config_of(name, root), "none", **more)
    return root, run_processes(several, 2, root, str(root))


def weights(path, key="state_dict"):
    return {k.removeprefix("module."): v for k, v in safe_torch_load(path)[key].items()}


def scalars(folder):
    rows = [json.loads(line) for f in folder.glob("*/vis_data/scalars.json") for line in f.read_text().splitlines()]
    return {r["step"]: r for r in rows if "loss" in r}


def assert_near(a, b, tolerance=1e-6):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].shape == b[key].shape, key
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=tolerance, msg=key)


@pytest.mark.parametrize("name", SAME)
def test_two_processes_train_what_one_does(runs, name):
    root, _ = runs
    # Each process logs its own terms; their mean is the joint loss. Weights are the stricter comparison.
    assert set(scalars(root / "two" / name)) == {1, 2, 3}
    a, b = weights(root / f"one/{name}/iter_3.pth"), weights(root / f"two/{name}/iter_3.pth")
    moved = max(float((a[k] - v).abs().max()) for k, v in weights(root / f"one/{name}/iter_2.pth").items())
    assert moved > 1e-4
    assert_near(a, b, 0.02 * moved)
    assert a["towers.logit_scale"].shape == ()


def test_accumulated_gradients_step_every_second_time_and_at_the_end(runs):
    root, _ = runs
    for folder in ("one", "two"):
        plain, summed = (safe_torch_load(root / folder / n / "iter_3.pth") for n in SAME)
        steps = [max(float(s["step"]) for s in c["optimizer"]["state"].values()) for c in (plain, summed)]
        assert steps == [3, 2]


def test_a_mean_of_weights_is_what_is_validated_and_goes_on(runs):
    root, _ = runs
    for folder in ("one", "two"):
        path, key = root / folder / "averaged/iter_3.pth", "towers.mask_network.attn_pool.attention.weight"
        # MMEngine swaps them: the average is stored as the weights, and the trained weights under another key.
        mean, trained = weights(path)[key], weights(path, "ema_state_dict")[key]
        before = [weights(path.with_name("iter_2.pth"), k)[key] for k in ("state_dict", "ema_state_dict")]
        torch.testing.assert_close(mean, 0.7 * before[0] + 0.3 * trained)
        assert (trained - before[1]).abs().max() > 1e-5
    assert_near(weights(path), weights(root / "two/averaged_again/iter_3.pth"), 0)


def test_a_scaled_rate_follows_the_joint_batch(runs):
    root, _ = runs
    plain, scaled = (safe_torch_load(root / "two" / n / "iter_3.pth")["optimizer"]["param_groups"] for n in SAME)
    assert [g["name"] for g in plain] == ["mask_network", "rest"]
    for before, after in zip(plain, scaled, strict=True):
        # A global batch of 8 with learning rates chosen for 16.
        assert after["lr"] == pytest.approx(0.5 * before["lr"])


@pytest.mark.parametrize("form", ["local", "full"])
def test_fsdp_trains_saves_and_goes_on(runs, form):
    root, _ = runs
    folder = root / "fsdp" / form
    if form == "local":
        assert sorted(p.name for p in (folder / "iter_3.pth").iterdir()) == ["rank0.pth", "rank1.pth"]
        for rank in ("rank0.pth", "rank1.pth"):
            a, b = (safe_torch_load(root / f"fsdp/{f}/iter_3.pth" / rank) for f in (form, f"{form}_again"))
            assert_near(a["state_dict"], b["state_dict"], 0)
        joint = [weights(folder / "iter_3.pth" / r) for r in ("rank0.pth", "rank1.pth")]
        whole = {k: torch.cat([j[k].flatten() for j in joint]) for k in joint[0]}
        expected = {k: v.flatten() for k, v in weights(root / "fsdp/full/iter_3.pth").items()}
        assert_near({k: v for k, v in whole.items() if k in expected}, expected, 0)
        return
    assert_near(weights(folder / "iter_3.pth"), weights(root / "fsdp/full_again/iter_3.pth"), 0)
    # A checkpoint of the towers for other tools, with the scale in the layout they read.
    towers = SmartCLIP.from_checkpoint(folder / "iter_3.pth")
    assert towers.openai_state()["logit_scale"].shape == ()
    assert not list(root.glob("fsdp/**/*.part"))


def test_hooks_see_whole_towers_under_fsdp(runs):
    root, _ = runs
    log = next((root / "fsdp/local").glob("*/*.log")).read_text()
    assert "Region probe before training" in log
    found = re.search(r"Iter\(val\).*region_all_dense_hard: ([\d.]+).*", log)
    assert 0 <= float(found[1]) <= 1
    assert "t2i_r1_long_hard" in found[0]


def test_what_fsdp_cannot_do_is_refused_on_every_process(runs):
    _, told = runs
    for one in told:
        assert "by its own norm" in one["clip"]
        assert "state_dict_cfg=full" in one["form"]

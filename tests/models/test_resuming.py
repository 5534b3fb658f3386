"""Resuming with other settings: each sample once, the new schedule at the old step, one log line about it."""

from __future__ import annotations

import re
import uuid

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner

from smartclip_det import register_alignment  # noqa: F401
from smartclip_det.core.errors import UserError
from smartclip_det.engine.stream_sampler import EpochStreamSampler, StreamBatches

SEEN: list[int] = []


@DATASETS.register_module(force=True)
class Numbers(torch.utils.data.Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"x": torch.tensor([float(index % self.count)])}


@MODELS.register_module(force=True)
class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, x, mode="tensor"):
        SEEN.extend(int(v) for v in torch.stack(list(x)).flatten())
        return {"loss": self.layer(torch.stack(list(x)).float() / 22).square().mean()}


def train(
    folder, *, stream, batch=8, epochs=2, resume=None, lr=0.1, count=22, optimizer="SGD", seed=0, stop=None, **more
):
    """Train; returns the learning rates and samples of each step, and the log."""
    SEEN.clear()
    loader = {
        "batch_size": batch,
        "num_workers": 0,
        "dataset": {"type": "Numbers", "count": count},
        "sampler": {"type": "DefaultSampler", "shuffle": True},
    }
    loop = {"type": "EpochBasedTrainLoop", "max_epochs": epochs}
    schedule = [
        {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 4},
        {"type": "CosineAnnealingLR", "T_max": epochs, "begin": 0, "end": epochs, "convert_to_iter_based": True},
        {"type": "MultiStepLR", "by_epoch": True, "begin": 0, "end": 99, "milestones": [1], "gamma": 0.5},
    ]
    if stream:
        loader |= {"sampler": {"type": "EpochStreamSampler"}, "batch_sampler": {"type": "StreamBatches"}}
        loop = {"type": "StreamTrainLoop", "max_epochs": epochs} | ({"max_steps": stop} if stop else {})
        schedule = [{"type": "WarmupCosineLR", "by_epoch": False, "warmup": 2}]
        schedule[0] |= {"end": epochs * -(-count // batch)} if stop else {}
    rates = []
    config = Config(
        {
            "model": {"type": "Line"},
            "work_dir": str(folder),
            "train_dataloader": loader,
            "train_cfg": loop,
            "param_scheduler": schedule,
            "optim_wrapper": {"optimizer": {"type": optimizer, "lr": lr, **more}},
            "default_hooks": {
                "checkpoint": {"type": "CheckpointHook", "by_epoch": not stream, "interval": 1, "max_keep_ckpts": 99},
                "resume": {"type": "ResumeHook"},
            },
            "randomness": {"seed": seed},
            "resume": resume is not None,
            "load_from": resume and str(resume),
            "experiment_name": uuid.uuid4().hex,
        }
    )
    runner = Runner.from_cfg(config)
    step = runner.model.train_step
    runner.model.train_step = lambda data, optim_wrapper: (
        rates.append(optim_wrapper.optimizer.param_groups[0]["lr"]),
        step(data, optim_wrapper),
    )[1]
    runner.train()
    log = "\n".join(p.read_text() for p in folder.glob("*/*.log"))
    return rates, list(SEEN), log, runner


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_asked_for_holds_from_the_place_of_the_checkpoint(tmp_path, stream):
    """As if the run had used the new settings from the start: learning rates, also for a longer run."""
    name = "iter_3.pth" if stream else "epoch_1.pth"
    train(tmp_path / "old", stream=stream)
    checkpoint = tmp_path / "old" / name
    for given in ({"epochs": 4}, {"lr": 0.02}, {"batch": 4}, {"batch": 11, "epochs": 3, "lr": 0.5}):
        whole, order, _, _ = train(tmp_path / f"whole{given}", stream=stream, **given)
        rates, seen, log, _ = train(tmp_path / f"on{given}", stream=stream, resume=checkpoint, **given)
        assert rates == pytest.approx(whole[-len(rates) :])
        assert len(rates) == len(whole) * (given.get("epochs", 2) - 1) // given.get("epochs", 2)
        if stream:
            assert seen == order[22:]
        told = [line for line in log.splitlines() if "Resumed at epoch 2, sample 0 of 22" in line]
        assert len(told) == 1
        for key, shown in (("batch", "batch 8 -> "), ("lr", "lr 0.1 -> "), ("epochs", "end 6 -> |T_max|train_cfg")):
            assert bool(re.search(shown, told[0])) or key not in given


def test_every_sample_of_an_epoch_comes_once_whatever_the_batches(tmp_path):
    whole = train(tmp_path / "old", stream=True)[1]
    for batch in (4, 5, 9, 11):
        _, seen, log, runner = train(
            tmp_path / f"on{batch}", stream=True, batch=batch, resume=tmp_path / "old/iter_2.pth"
        )
        assert seen == whole[16:]
        assert "sample 16 of 22" in log
        assert runner.iter == runner.max_iters
    # And again from the middle of the shifted epoch.
    middle = min((tmp_path / "on4").glob("iter_*.pth"), key=lambda p: int(p.stem.split("_")[1]))
    _, seen, _, _ = train(tmp_path / "third", stream=True, batch=3, resume=middle)
    assert seen == whole[20:]


@pytest.mark.parametrize("stream", [True, False])
def test_an_unchanged_run_goes_on_to_the_bit_and_says_nothing(tmp_path, stream):
    rates, seen, _, whole = train(tmp_path / "old", stream=stream, momentum=0.9)
    name = "iter_2.pth" if stream else "epoch_1.pth"
    again, after, log, runner = train(tmp_path / "on", stream=stream, momentum=0.9, resume=tmp_path / "old" / name)
    assert again == rates[-len(again) :]
    assert not stream or after == seen[16:]
    assert "Resumed at" not in log
    if stream:
        assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), runner.model.parameters(), strict=True))


def test_moments_are_kept_where_they_fit(tmp_path):
    train(tmp_path / "old", stream=True, momentum=0.9)
    checkpoint = tmp_path / "old/iter_2.pth"
    _, _, log, runner = train(tmp_path / "on", stream=True, momentum=0.5, weight_decay=0.01, resume=checkpoint)
    group = runner.optim_wrapper.optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.01)
    assert "momentum 0.9 -> 0.5" in log
    _, _, log, _ = train(tmp_path / "other", stream=True, optimizer="AdamW", resume=checkpoint)
    assert "optimizer SGD -> AdamW" in log
    assert "state starts from scratch" in log


def test_seed_size_and_the_end_are_told(tmp_path):
    train(tmp_path / "old", stream=True)
    checkpoint = tmp_path / "old/iter_2.pth"
    assert "seed 0 -> 3" in train(tmp_path / "seed", stream=True, seed=3, resume=checkpoint)[2]
    _, _, log, _ = train(tmp_path / "size", stream=True, count=10, resume=checkpoint)
    assert "images 22 -> 10" in log
    assert "Resumed at epoch 2, sample 6 of 10" in log
    rates, _, log, _ = train(tmp_path / "end", stream=True, epochs=1, resume=tmp_path / "old/iter_3.pth")
    assert rates == []
    assert "Nothing left to train" in log


def test_a_config_inside_a_checkpoint_is_not_run(tmp_path):
    train(tmp_path / "old", stream=True)
    path, marker = tmp_path / "old/iter_2.pth", tmp_path / "ran"
    content = torch.load(path, weights_only=False)
    content["meta"]["config"] = f"open({str(marker)!r}, 'w')\ngpu_ids = [0]\n"
    torch.save(content, path)
    train(tmp_path / "on", stream=True, resume=path)
    assert not marker.exists()


def test_groups_that_do_not_fit_are_an_error(tmp_path):
    train(tmp_path / "old", stream=True)
    path = tmp_path / "old/iter_2.pth"
    content = torch.load(path, weights_only=False)
    content["optimizer"]["param_groups"][0]["params"] = [0]
    torch.save(content, path)
    with pytest.raises(UserError, match="Start from the weights only"):
        train(tmp_path / "on", stream=True, lr=0.3, resume=path)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("joint", [6, 12])
@pytest.mark.parametrize("samples", [0, 6, 7, 19, 20, 21, 22])
def test_positions_of_any_batches_end_with_the_epoch(world, joint, samples):
    sampler = EpochStreamSampler(Numbers(22))
    sampler.world_size, found = world, []
    for rank in range(world):
        sampler.rank = rank
        batches = StreamBatches(sampler, joint // world)
        step = batches.resume_at(1, samples)
        stream = iter(batches)
        for n in range(step, (step // len(batches) + 1) * len(batches)):
            assert batches.position(n)[0] == step // len(batches)
            own = next(stream)
            assert own
            found += own
    order = [22 + i for i in sampler.order(1)][samples:]
    lost = (22 - samples) % joint if (22 - samples) % joint < world else 0
    order = order[: len(order) - lost]
    assert sorted(found) == sorted(order) or (not order and len(found) >= 22 - world)

"""A run with non-finite numbers stops before the step is taken; the learned scale stays within its bounds."""

from __future__ import annotations

import json
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS
from mmengine.structures import BaseDataElement

from smartclip_det.core.errors import UserError
from smartclip_det.engine.alignment_hooks import LearnedScaleHook
from smartclip_det.engine.finite_guard import FiniteGuardHook
from smartclip_det.engine.launch import add_guards
from smartclip_det.models.losses.alignment_loss import AlignmentLoss, bound_scale


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, factor, other=0.0):
        return {
            "loss_a": (self.weight * factor).sum(),
            "loss_b": torch.tensor(other),
            "scale": torch.tensor(7.0),
            "mask_density": torch.tensor(0.25),
        }


class Run:
    """A minimal runner for a hook, one step at a time."""

    def __init__(self, folder, wrapper, hook=None):
        self.hook = hook or FiniteGuardHook()
        model = Model()
        self.runner = SimpleNamespace(
            model=model,
            optim_wrapper=wrapper(model),
            iter=0,
            rank=0,
            work_dir=str(folder),
            logger=logging.getLogger("run"),
        )
        self.hook.before_train(self.runner)

    def step(self, factor, other=0.0):
        samples = [BaseDataElement(metainfo={"img_path": f"{n}.jpg"}) for n in "ab"]
        batch = {"data_samples": samples}
        runner = self.runner
        self.hook.before_train_iter(runner, runner.iter, batch)
        losses = runner.model(torch.tensor(factor), other)
        runner.optim_wrapper.update_params(losses["loss_a"] + losses["loss_b"])
        self.hook.after_train_iter(runner, runner.iter, batch, {k: float(v.detach()) for k, v in losses.items()})
        runner.iter += 1


def plain(model, **options):
    return OptimWrapper(torch.optim.AdamW(model.parameters(), lr=0.1), **options)


@pytest.mark.parametrize(
    ("factor", "other", "what"),
    [
        (float("nan"), 0.0, "loss_a and gradients of 1 parameters .weight."),
        (float("inf"), 0.0, "loss_a"),
        (1.0, float("nan"), "not finite: loss_b"),
    ],
)
@pytest.mark.parametrize("clip", [None, {"max_norm": 1.0}])
def test_the_step_is_not_taken_and_the_error_says_where(tmp_path, factor, other, what, clip):
    run = Run(tmp_path, lambda m: plain(m, clip_grad=clip))
    run.step(1.0)
    before = run.runner.model.weight.detach().clone()
    with pytest.raises(UserError, match=what) as told:
        run.step(factor, other)
    assert torch.equal(run.runner.model.weight, before)
    for part in ("step 2", "a.jpg, b.jpg", "scale 7", "mask_density 0.25", "Suggestions"):
        assert part in str(told.value)
    assert json.loads(next(tmp_path.glob("not_finite*.json")).read_text())["samples"] == ["a.jpg", "b.jpg"]


def test_gradients_whose_norm_overflows_stop_a_run_too(tmp_path):
    run = Run(tmp_path, plain)
    with pytest.raises(UserError, match="the norm of finite gradients"):
        run.step([3e38, -3e38])


def test_finite_runs_are_left_alone_and_hooks_go_with_the_run(tmp_path):
    run = Run(tmp_path, plain)
    for _ in range(3):
        run.step(1.0)
    run.hook.after_train(run.runner)
    assert not run.runner.model._forward_hooks
    assert not list(tmp_path.iterdir())


def test_losses_of_accumulated_steps_are_looked_at(tmp_path):
    run = Run(tmp_path, lambda m: plain(m, accumulative_counts=4))
    with pytest.raises(UserError, match="loss_b is not finite"):
        run.step(1.0, float("inf"))


def amp(model):
    wrapper = AmpOptimWrapper.__new__(AmpOptimWrapper)
    OptimWrapper.__init__(wrapper, torch.optim.AdamW(model.parameters(), lr=0.1))
    wrapper._scale_update_param = None
    wrapper.loss_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    return wrapper


def test_loss_scaling_may_skip_some_steps_and_not_all(tmp_path):
    run = Run(tmp_path, amp, FiniteGuardHook(max_skipped=3))
    before = run.runner.model.weight.detach().clone()
    for _ in range(3):
        run.step(float("inf"))
    assert torch.equal(run.runner.model.weight, before)
    run.step(1.0)
    assert not torch.equal(run.runner.model.weight, before)
    for _ in range(3):
        run.step(float("nan"))
    with pytest.raises(UserError, match="not finite in 4 steps in a row, at a loss scale of"):
        run.step(float("nan"))


def test_broken_weights_are_not_saved(tmp_path):
    run = Run(tmp_path, plain)
    state = {"a": torch.ones(2), "b": torch.tensor([1.0, math.inf]), "n": torch.tensor(3)}
    with pytest.raises(UserError, match="1 weights are not finite, e.g. b"):
        run.hook.before_save_checkpoint(run.runner, {"state_dict": state})
    run.hook.before_save_checkpoint(run.runner, {"state_dict": {k: state[k] for k in "an"}})


@pytest.mark.parametrize("start", [math.log(100), 4.7, 10.0, 20.0, 50.0, 89.0, 100.0, 1e6])
def test_a_learned_scale_is_100_above_its_bound(start):
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(6, 16, generator=g) for _ in range(2)]
    log = torch.tensor(start, requires_grad=True)
    losses = AlignmentLoss("off", scale="learned")(*given, None, log)
    assert losses["scale"].item() == pytest.approx(100, abs=1e-3)
    (losses["loss_sidm"] + losses["loss_dism"]).backward()
    assert torch.isfinite(log.grad)
    assert torch.isfinite(losses["loss_sidm"])
    if start == math.log(100):
        assert log.grad.abs() > 0, "a scale at its bound can come back"


@pytest.mark.parametrize(
    ("start", "end", "was"),
    [(5.0, math.log(100), 5.0), (-1.0, 0.0, -1.0), (2.0, 2.0, None), (math.log(100), math.log(100), None)],
)
def test_the_parameter_is_put_back_after_each_step(start, end, was):
    scale = torch.nn.Parameter(torch.tensor(start))
    assert bound_scale(scale) == was
    assert scale.item() == pytest.approx(end)
    assert bound_scale(scale) is None
    scale.data.fill_(start)
    for learns, expected in ((True, end), (False, start)):
        scale.data.fill_(start)
        model = SimpleNamespace(loss=SimpleNamespace(learns_scale=learns), towers=SimpleNamespace(logit_scale=scale))
        LearnedScaleHook().after_train_iter(SimpleNamespace(model=model), 0)
        assert scale.item() == pytest.approx(expected)


def test_a_config_with_a_runtime_of_its_own_gets_the_guards_once():
    config = Config(
        {"train_cfg": {"max_epochs": 1}, "custom_hooks": [{"type": "ResumeHook"}], "default_hooks": {"timer": None}}
    )
    for _ in range(2):
        add_guards(config)
    assert [h["type"].split(".")[-1] for h in config.custom_hooks] == ["ResumeHook", "FiniteGuardHook"]
    assert isinstance(HOOKS.build(config.custom_hooks[1]), FiniteGuardHook)
    tested = Config({"custom_hooks": []})
    add_guards(tested)
    assert tested.custom_hooks == []

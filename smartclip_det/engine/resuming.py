"""Resuming from a checkpoint with changed settings: position and schedule are recomputed for the current config.

MMEngine silently replaces the new config's schedule and hyperparameters by the old ones, and counts steps whatever the
batch size was. Needs neither mmdet nor mmcv.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

from smartclip_det.core.errors import UserError
from smartclip_det.engine.optim import KERNELS
from smartclip_det.engine.stream_sampler import StreamBatches

#: Keys of a scheduler's state that describe its position; the others describe the schedule.
_MOVING = {"last_step", "_global_step", "_last_value", "verbose", "last_epoch"}


@HOOKS.register_module()
class ResumeHook(Hook):
    """Stores the position in samples in checkpoints, and adapts a checkpoint to the run that resumes from it."""

    priority = "VERY_HIGH"

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Store the position of the run in samples."""
        meta = checkpoint["meta"]
        meta["progress"] = {**_setting(runner), **_position(runner, meta["epoch"], meta["iter"])}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Adapt the checkpoint before the runner reads position, optimizer and schedule from it."""
        meta = checkpoint.get("meta")
        if not isinstance(meta, dict):
            return
        # MMEngine executes this text as a config when resuming; checkpoints saved today do not have it.
        meta.pop("config", None)
        if getattr(runner, "_resume", False):
            _adapt(runner, checkpoint, meta)


def _setting(runner: Runner) -> dict[str, Any]:
    loader, world = runner.train_dataloader, get_world_size()
    size = getattr(loader.batch_sampler, "batch_size", None) or loader.batch_size or 1
    optimizer = getattr(runner.optim_wrapper, "optimizer", None)
    return {
        "images": len(loader.dataset),
        "batch": size * world,
        "processes": world,
        "optimizer": type(optimizer).__name__,
    }


def _position(runner: Runner, epoch: int, step: int) -> dict[str, int]:
    """Epoch, and number of its samples that were trained."""
    sampler = runner.train_dataloader.batch_sampler
    if isinstance(sampler, StreamBatches):
        epoch, samples = sampler.position(step)
        return {"epoch": epoch, "samples": samples}
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        return {"epoch": epoch, "samples": 0}
    return {"epoch": 0, "samples": step * _setting(runner)["batch"]}


def _adapt(runner: Runner, checkpoint: dict[str, Any], meta: dict[str, Any]) -> None:
    old, new = meta.get("progress"), _setting(runner)
    old = old if isinstance(old, Mapping) else {}
    changes = [f"{k} {old[k]} -> {new[k]}" for k in new if k in old and old[k] != new[k]]
    step = _move(runner, meta, old, new)
    changes += _seed(runner, meta)
    schedulers = runner.param_schedulers
    _fit_scalars(runner, checkpoint.get("optimizer"))
    _keep_kernels(runner, checkpoint.get("optimizer"))
    plain = isinstance(runner.optim_wrapper, OptimWrapper) and isinstance(schedulers, list)
    if plain:
        changes += _changed_schedule(schedulers, checkpoint.get("param_schedulers"))
        changes += _changed_groups(runner.optim_wrapper.param_groups, checkpoint.get("optimizer"))
    recompute = bool(changes) or step != meta["iter"]
    if plain and recompute:
        _reschedule(runner, checkpoint, step, meta["epoch"])
        _renew_optimizer(runner, checkpoint, old.get("optimizer") not in (None, new["optimizer"]))
    changes += _changed_sections(meta.get("cfg"), runner.cfg.pretty_text)
    at = _position(runner, meta["epoch"], step)
    where = f"epoch {at['epoch'] + 1}, sample {at['samples']} of {new['images']} (step {step})"
    if recompute or changes:
        end = " Position and schedule were recomputed for the current config." if recompute else ""
        what = "; ".join(changes) or "steps per epoch"
        runner.logger.warning(f"Resumed at {where}. Changed since the checkpoint: {what}.{end}")
    meta["iter"] = step
    loop = runner.train_loop
    done = meta["epoch"] >= loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else step >= loop.max_iters
    if done:
        runner.logger.warning(f"Nothing left to train: the checkpoint is at {where}, the end of this training.")


def _move(runner: Runner, meta: dict[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> int:
    """The step of the same position with the new batch size; the epoch is set in ``meta``."""
    loader, step = runner.train_dataloader, meta["iter"]
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        return meta["epoch"] * len(loader)
    if not {"epoch", "samples", "images", "batch"} <= set(old):
        return step
    if isinstance(loader.batch_sampler, StreamBatches):
        epoch, samples = old["epoch"], old["samples"]
        if old["images"] != new["images"]:
            epoch, samples = divmod(epoch * old["images"] + samples, new["images"])
        return loader.batch_sampler.resume_at(epoch, samples)
    # With another batch size the step cannot match exactly: prefer repeating samples to skipping them.
    return step * old["batch"] // new["batch"]


def _seed(runner: Runner, meta: dict[str, Any]) -> list[str]:
    """Use the config's seed if it sets one; MMEngine would use the old one with a warning."""
    configured, old = getattr(runner, "_randomness_cfg", {}).get("seed"), meta.get("seed")
    if configured is None or old is None or configured == old:
        return []
    meta["seed"] = configured
    return [f"seed {old} -> {configured} (another order: images may be repeated within this epoch)"]


def _fit_scalars(runner: Runner, old: Any) -> None:
    """Reshape optimizer moments of scalar parameters, which older checkpoints store as 0-d tensors."""
    optimizer = getattr(runner.optim_wrapper, "optimizer", None)
    if optimizer is None or not isinstance(old, Mapping) or not isinstance(old.get("state"), Mapping):
        return
    names = [n for group in old.get("param_groups", ()) for n in group["params"]]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for name, param in zip(names, params, strict=False):
        state = old["state"].get(name, {})
        for key, value in state.items():
            # The step count is a true scalar.
            if isinstance(value, torch.Tensor) and value.dim() == 0 and key != "step" and param.shape == (1,):
                state[key] = value.reshape(1)


def _keep_kernels(runner: Runner, old: Any) -> None:
    """Kernels of the optimizer are those of this device, whatever the checkpoint was written on."""
    groups = getattr(runner.optim_wrapper, "param_groups", None)
    if not isinstance(groups, list) or not isinstance(old, Mapping):
        return
    for now, before in zip(groups, old.get("param_groups") or (), strict=False):
        before.update({k: now[k] for k in KERNELS if k in now and k in before})


def _changed_schedule(schedulers: Sequence[Any], old: Any) -> list[str]:
    if not isinstance(old, list):
        return []
    if len(old) != len(schedulers):
        return [f"schedulers {len(old)} -> {len(schedulers)}"]
    out = []
    for scheduler, before in zip(schedulers, old, strict=True):
        now = scheduler.state_dict()
        keys = sorted((set(now) | set(before)) - _MOVING)
        out += [
            f"{type(scheduler).__name__}.{k} {before.get(k)} -> {now.get(k)}"
            for k in keys
            if before.get(k) != now.get(k)
        ]
    return out


def _changed_groups(groups: Sequence[Mapping[str, Any]], old: Any) -> list[str]:
    """Hyperparameters that differ from the config; scheduled ones are compared by their initial values."""
    if not isinstance(old, Mapping) or not isinstance(old.get("param_groups"), list):
        return []
    out: dict[str, None] = {}
    for now, before in zip(groups, old["param_groups"], strict=False):
        moved = {k.removeprefix("initial_") for k in now if k.startswith("initial_")}
        for key in now:
            if key != "params" and key not in moved and key in before and before[key] != now[key]:
                out[f"{key.removeprefix('initial_')} {before[key]} -> {now[key]}"] = None
    return list(out)


def _reschedule(runner: Runner, checkpoint: dict[str, Any], steps: int, epochs: int) -> None:
    """Advance the new schedulers to the position step by step: most compute a value from the previous one."""
    schedulers = runner.param_schedulers
    if any(getattr(s, "need_val_args", False) for s in schedulers):
        runner.logger.warning("A schedule that follows a metric cannot be recomputed: keeping its old state.")
        return
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    every = len(runner.train_dataloader) if by_epoch else 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # schedulers expect optimizer steps in between
        for step in range(steps):
            for scheduler in (s for s in schedulers if not s.by_epoch):
                scheduler.step()
            if by_epoch and (step + 1) % every == 0:
                for scheduler in (s for s in schedulers if s.by_epoch):
                    scheduler.step()
    checkpoint["param_schedulers"] = [s.state_dict() for s in schedulers]


def _renew_optimizer(runner: Runner, checkpoint: dict[str, Any], other_type: bool) -> None:
    """Keep the moments; use the config's hyperparameters at the schedule's position."""
    own, old = runner.optim_wrapper.state_dict(), checkpoint.get("optimizer")
    if not isinstance(old, Mapping):
        return
    if other_type:
        checkpoint["optimizer"] = {**own, "state": {}}
        runner.logger.warning("The optimizer type has changed: its state starts from scratch.")
        return
    sizes = [[len(g["params"]) for g in groups["param_groups"]] for groups in (old, own)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"The checkpoint's optimizer has groups of {sizes[0]} parameters, this config's {sizes[1]}: it cannot be "
            "resumed. Start from the weights only: --cfg-options load_from=CHECKPOINT, without --resume."
        )
    groups = [
        {**now, "params": was["params"]} for was, now in zip(old["param_groups"], own["param_groups"], strict=True)
    ]
    checkpoint["optimizer"] = {**old, **{k: own[k] for k in own if k == "base_param_settings"}, "param_groups": groups}


def _changed_sections(old: Any, new: str) -> list[str]:
    """Names of config sections that differ; the old text is parsed, never executed."""
    try:
        before, now = (
            {
                t.id: ast.dump(n.value)
                for n in ast.parse(text).body
                if isinstance(n, ast.Assign)
                for t in n.targets
                if isinstance(t, ast.Name)
            }
            for text in (old, new)
        )
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        return []
    names = [k for k in dict.fromkeys([*now, *before]) if before.get(k) != now.get(k)]
    names = [k for k in names if k not in ("work_dir", "resume", "load_from", "launcher", "experiment_name")]
    return [f"config: {', '.join(names)}"] if names else []

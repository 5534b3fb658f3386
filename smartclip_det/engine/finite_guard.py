"""Stops runs whose numbers are no longer finite, before anything of them is saved. Needs neither mmdet nor mmcv."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from smartclip_det.core.errors import UserError
from smartclip_det.engine.launch import unwrapped
from smartclip_det.utils.files import write_whole

#: Sample identifiers of different datasets, most specific first.
_IDS = ("img_id", "sample_id", "ref_id", "img_path")
_ADVICE = (
    "Suggestions: inspect these samples; lower optim_wrapper.optimizer.lr or use a longer warm-up; set "
    "optim_wrapper.clip_grad; train in float32 or bfloat16 instead of float16. Then continue with --resume."
)


@HOOKS.register_module()
class FiniteGuardHook(Hook):
    """Stops the run at a loss or gradient that is not finite, before the step is taken and before anything is saved.

    It synchronises with the device once per step: all logged numbers, and whether gradients are finite, are copied
    together before the optimizer step. The logging hooks then get plain numbers.

    With loss scaling, such steps are skipped by the scaler, which is normal while it adjusts its scale; too many in a
    row stop the run as well.

    Args:
        max_skipped: consecutive steps that loss scaling may skip; from its initial 2**16 it needs 16 to reach 1.
    """

    # Runs before the hooks that save, and before those that log.
    priority = "HIGHEST"

    def __init__(self, max_skipped: int = 25) -> None:
        if max_skipped < 1:
            raise UserError(f"max_skipped must be at least 1; given {max_skipped}.")
        self.max_skipped, self.skipped, self.total_skipped = max_skipped, 0, 0
        self._stepped, self._losses, self._batch = False, {}, None  # type: tuple[bool, dict[str, Any], Any]
        self._numbers_read: dict[str, float] | None = None
        self._handles: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        """Register hooks on the model, for losses, and on the optimizer, for gradients."""

        def keep(model: Any, args: Any, out: Any) -> None:
            if isinstance(out, Mapping):
                self._losses = {k: _detached(v) for k, v in out.items()}

        def check(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            self._stepped = True
            self._check_gradients(runner, optimizer)

        self.after_train(runner)
        self._handles = [runner.model.register_forward_hook(keep)]
        optimizer = getattr(runner.optim_wrapper, "optimizer", None)
        if isinstance(optimizer, torch.optim.Optimizer):
            self._handles.append(optimizer.register_step_pre_hook(check))

    def after_train(self, runner: Runner) -> None:
        """Remove the hooks from model and optimizer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self.total_skipped:
            runner.logger.info(f"Loss scaling skipped {self.total_skipped} steps in total.")
            self.total_skipped = 0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Reset the state, and store the batch for error messages."""
        self._stepped, self._losses, self._batch, self._numbers_read = False, {}, data_batch, None

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Check losses of steps without an optimizer step, and count steps skipped by the scaler."""
        wrapper = runner.optim_wrapper
        scaled = hasattr(wrapper, "loss_scaler")
        losses = self._numbers()
        if isinstance(outputs, dict):
            # Same sums as MMEngine's parse_losses; values that are not in the losses are read individually.
            known = {**losses, "loss": sum(v for k, v in losses.items() if "loss" in k)} if losses else {}
            outputs.update({k: known[k] for k, v in outputs.items() if k in known and isinstance(v, torch.Tensor)})
            losses = {**losses, **outputs}
        broken = [k for k, v in losses.items() if k.startswith("loss") and not _finite(v)]
        if broken and not scaled:
            self._stop(runner, f"{', '.join(broken)} is not finite", losses)
        if not scaled or not len(self._handles) > 1 or not wrapper.should_update():
            return
        self.skipped = 0 if self._stepped else self.skipped + 1
        self.total_skipped += not self._stepped
        if self.skipped > self.max_skipped:
            what = f"{', '.join(broken)} is" if broken else "gradients are"
            self._stop(
                runner,
                f"{what} not finite in {self.skipped} steps in a row, at a loss scale of "
                f"{wrapper.loss_scaler.get_scale():g}",
                losses,
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Never save weights that are not finite."""
        broken = [k for k, v in checkpoint.get("state_dict", {}).items() if not _finite(v)]
        if broken:
            self._stop(runner, f"{len(broken)} weights are not finite, e.g. {broken[0]}", self._losses)

    def _numbers(self, also: torch.Tensor | None = None) -> dict[str, float]:
        """Means of the model's outputs, copied from the device at once; ``also`` is included under the name ``""``."""
        if self._numbers_read is None or also is not None:
            summed = {k: _summed(v) for k, v in self._losses.items()}
            tensors = {k: v for k, v in summed.items() if isinstance(v, torch.Tensor)}
            if also is not None:
                tensors[""] = also
            numbers: list[float] = []
            if tensors:
                device = next(iter(tensors.values())).device
                numbers = torch.stack([v.to(device, torch.float64) for v in tensors.values()]).tolist()
            plain = {k: float(v) for k, v in summed.items() if isinstance(v, int | float)}
            self._numbers_read = {**plain, **dict(zip(tensors, numbers, strict=True))}
        return {k: v for k, v in self._numbers_read.items() if k}

    def _check_gradients(self, runner: Runner, optimizer: torch.optim.Optimizer) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        dense = [g for g in grads if not g.is_sparse]
        read = self._numbers(torch.isfinite(torch.stack(torch._foreach_norm(dense))).all() if dense else None)
        losses = [k for k, v in read.items() if k.startswith("loss") and not _finite(v)]
        assert self._numbers_read is not None
        if not losses and self._numbers_read.get("", 1.0):
            return
        names = {id(p): n for n, p in unwrapped(runner.model).named_parameters()}
        broken = [
            names.get(id(p), "?")
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None and not _finite(p.grad)
        ]
        if not losses and not broken:
            # The gradients are finite but their squares overflow, so clipping and the optimizer would produce inf.
            broken = ["the norm of finite gradients"]
        parts = [", ".join(losses)] if losses else []
        parts += [f"gradients of {len(broken)} parameters ({', '.join(broken[:3])})"] if broken else []
        self._stop(runner, f"not finite: {' and '.join(parts)}", self._losses)

    def _stop(self, runner: Runner, what: str, losses: Mapping[str, Any]) -> None:
        """Raise with step and samples, after writing all sample ids to a file in the work folder."""
        step = runner.iter + 1
        ids = sample_ids(self._batch)
        values = {k: _number(v) for k, v in losses.items()}
        facts = [f"{k} {values[k]:.4g}" for k in values if k == "scale" or "density" in k or k.startswith("loss")]
        path = Path(runner.work_dir) / f"not_finite_step_{step}.rank{runner.rank}.json"
        write_whole(
            path,
            json.dumps(
                {"step": step, "what": what, "losses": {k: str(v) for k, v in values.items()}, "samples": ids}, indent=1
            ),
        )
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        raise UserError(
            f"Training stopped at step {step}: {what}. Samples: {shown or 'unknown'} (all in {path}). "
            f"{'; '.join(facts) or 'no losses available'}. Nothing of this step was saved. {_ADVICE}"
        )


def sample_ids(batch: Any) -> list[str]:
    """Identifiers of the samples of a batch."""
    samples = batch.get("data_samples") if isinstance(batch, Mapping) else None
    if isinstance(samples, Mapping):  # several branches, as in semi-supervised runs
        samples = [s for part in samples.values() for s in part]
    out = []
    for sample in samples or []:
        identifier = next((sample.get(k) for k in _IDS if hasattr(sample, "get") and sample.get(k) is not None), None)
        out.append("?" if identifier is None else str(identifier))
    return out


def _detached(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    return [_detached(v) for v in value] if isinstance(value, list | tuple) else value


def _summed(value: Any) -> Any:
    """The number that MMEngine logs: a mean, or the sum of the means of a list; None for other types."""
    if isinstance(value, torch.Tensor):
        return value.mean() if value.is_floating_point() else value.float().mean()
    if isinstance(value, list | tuple):
        parts = [_summed(v) for v in value]
        return sum(parts) if parts and all(isinstance(p, torch.Tensor) for p in parts) else None
    return value if isinstance(value, int | float) else None


def _finite(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_finite(v) for v in value)
    if not isinstance(value, torch.Tensor):
        return not isinstance(value, float) or value - value == 0
    return not (value.is_floating_point() or value.is_complex()) or bool(torch.isfinite(value).all())


def _number(value: Any) -> float:
    if isinstance(value, list | tuple):
        return sum(_number(v) for v in value)
    if isinstance(value, torch.Tensor):
        return float(value.float().mean())
    return float(value) if isinstance(value, int | float) else float("nan")

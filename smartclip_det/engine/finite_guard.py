"""Stops runs whose numbers are no longer finite, before anything of them is kept. Needs neither mmdet nor mmcv."""

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

#: Names that data sets give a sample, the most telling first.
_IDS = ("img_id", "sample_id", "ref_id", "img_path")
_ADVICE = (
    "What to try: look at the samples; lower optim_wrapper.optimizer.lr or lengthen the warm-up; set "
    "optim_wrapper.clip_grad; train in float32 or bfloat16 instead of float16. Then go on with --resume."
)


@HOOKS.register_module()
class FiniteGuardHook(Hook):
    """A loss or gradient that is not finite stops the run, before the step is taken and before anything is saved.

    What it asks the device for is all that a step waits for: every logged number and whether gradients are finite, in
    one copy before the optimizer's step. The hooks that log find plain numbers.

    Under loss scaling such steps are skipped by the scaler, as they must be while it looks for its factor; so many in
    a row stop the run as well.
    """

    # Before the hooks that save, and before those that log.
    priority = "HIGHEST"

    def __init__(self, max_skipped: int = 25) -> None:
        """Build.

        Args:
            max_skipped: steps in a row that loss scaling may skip; from 2**16, where it starts, it needs 16 to reach 1.
        """
        if max_skipped < 1:
            raise UserError(f"max_skipped must be at least 1; given {max_skipped}.")
        self.max_skipped, self.skipped, self.skipped_in_all = max_skipped, 0, 0
        self._stepped, self._losses, self._batch = False, {}, None  # type: tuple[bool, dict[str, Any], Any]
        self._told: dict[str, float] | None = None
        self._handles: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        """Look at losses where the model gives them, and at gradients where the optimizer takes them."""

        def keep(model: Any, given: Any, out: Any) -> None:
            if isinstance(out, Mapping):
                self._losses = {k: _detached(v) for k, v in out.items()}

        def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            self._stepped = True
            self._look_at_gradients(runner, optimizer)

        self.after_train(runner)
        self._handles = [runner.model.register_forward_hook(keep)]
        optimizer = getattr(runner.optim_wrapper, "optimizer", None)
        if isinstance(optimizer, torch.optim.Optimizer):
            self._handles.append(optimizer.register_step_pre_hook(look))

    def after_train(self, runner: Runner) -> None:
        """Leave model and optimizer as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self.skipped_in_all:
            runner.logger.info(f"Loss scaling skipped {self.skipped_in_all} steps in all.")
            self.skipped_in_all = 0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Remember what is asked about when something goes wrong."""
        self._stepped, self._losses, self._batch, self._told = False, {}, data_batch, None

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Losses of steps that took no gradient; steps that the scaler skipped."""
        wrapper = runner.optim_wrapper
        scaled = hasattr(wrapper, "loss_scaler")
        losses = self._numbers()
        if isinstance(outputs, dict):
            # As MMEngine's parse_losses sums them up; numbers that it alone knows are asked for by name.
            known = {**losses, "loss": sum(v for k, v in losses.items() if "loss" in k)} if losses else {}
            outputs.update({k: known[k] for k, v in outputs.items() if k in known and isinstance(v, torch.Tensor)})
            losses = {**losses, **outputs}
        broken = [k for k, v in losses.items() if k.startswith("loss") and not _finite(v)]
        if broken and not scaled:
            self._stop(runner, f"{', '.join(broken)} is not finite", losses)
        if not scaled or not len(self._handles) > 1 or not wrapper.should_update():
            return
        self.skipped = 0 if self._stepped else self.skipped + 1
        self.skipped_in_all += not self._stepped
        if self.skipped > self.max_skipped:
            what = f"{', '.join(broken)} is" if broken else "gradients are"
            self._stop(
                runner,
                f"{what} not finite in {self.skipped} steps in a row, at a loss scale of "
                f"{wrapper.loss_scaler.get_scale():g}",
                losses,
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """No weights that are not finite are saved as if they were good."""
        broken = [k for k, v in checkpoint.get("state_dict", {}).items() if not _finite(v)]
        if broken:
            self._stop(runner, f"{len(broken)} weights are not finite, e.g. {broken[0]}", self._losses)

    def _numbers(self, also: torch.Tensor | None = None) -> dict[str, float]:
        """Means of what the model gave, in one copy from the device; ``also`` goes with them under the name ``""``."""
        if self._told is None or also is not None:
            summed = {k: _summed(v) for k, v in self._losses.items()}
            tensors = {k: v for k, v in summed.items() if isinstance(v, torch.Tensor)}
            if also is not None:
                tensors[""] = also
            numbers: list[float] = []
            if tensors:
                place = next(iter(tensors.values())).device
                numbers = torch.stack([v.to(place, torch.float64) for v in tensors.values()]).tolist()
            found = {k: float(v) for k, v in summed.items() if isinstance(v, int | float)}
            self._told = {**found, **dict(zip(tensors, numbers, strict=True))}
        return {k: v for k, v in self._told.items() if k}

    def _look_at_gradients(self, runner: Runner, optimizer: torch.optim.Optimizer) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        dense = [g for g in grads if not g.is_sparse]
        told = self._numbers(torch.isfinite(torch.stack(torch._foreach_norm(dense))).all() if dense else None)
        losses = [k for k, v in told.items() if k.startswith("loss") and not _finite(v)]
        assert self._told is not None
        if not losses and self._told.get("", 1.0):
            return
        names = {id(p): n for n, p in unwrapped(runner.model).named_parameters()}
        found = [
            names.get(id(p), "?")
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None and not _finite(p.grad)
        ]
        if not losses and not found:
            # Finite numbers whose squares are not: clipping and the optimizer would make them so.
            found = ["the norm of finite gradients"]
        parts = [", ".join(losses)] if losses else []
        parts += [f"gradients of {len(found)} parameters ({', '.join(found[:3])})"] if found else []
        self._stop(runner, f"not finite: {' and '.join(parts)}", self._losses)

    def _stop(self, runner: Runner, what: str, losses: Mapping[str, Any]) -> None:
        """Say where and in what, leave the whole list beside the logs, and end the run."""
        step = runner.iter + 1
        ids = sample_ids(self._batch)
        told = {k: _number(v) for k, v in losses.items()}
        facts = [f"{k} {told[k]:.4g}" for k in told if k == "scale" or "density" in k or k.startswith("loss")]
        path = Path(runner.work_dir) / f"not_finite_step_{step}.rank{runner.rank}.json"
        write_whole(
            path,
            json.dumps(
                {"step": step, "what": what, "losses": {k: str(v) for k, v in told.items()}, "samples": ids}, indent=1
            ),
        )
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        raise UserError(
            f"Training stopped at step {step}: {what}. Samples: {shown or 'not told'} (all in {path}). "
            f"{'; '.join(facts) or 'no losses were told'}. Nothing of this step was saved. {_ADVICE}"
        )


def sample_ids(batch: Any) -> list[str]:
    """What identifies the samples of a batch."""
    samples = batch.get("data_samples") if isinstance(batch, Mapping) else None
    if isinstance(samples, Mapping):  # several branches, as in semi-supervised runs
        samples = [s for part in samples.values() for s in part]
    out = []
    for sample in samples or []:
        found = next((sample.get(k) for k in _IDS if hasattr(sample, "get") and sample.get(k) is not None), None)
        out.append("?" if found is None else str(found))
    return out


def _detached(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    return [_detached(v) for v in value] if isinstance(value, list | tuple) else value


def _summed(value: Any) -> Any:
    """The number that MMEngine logs: a mean, or the sum of the means of a list; None for what is none."""
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

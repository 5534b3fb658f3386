"""Optimizer groups and schedule of alignment training, as in SmartCLIP's released recipe (arXiv 2507.22264).

The release uses two AdamW optimizers; one AdamW with parameter groups is equivalent and works with all MMEngine
strategies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS, PARAM_SCHEDULERS
from torch import nn

from smartclip_det.core.errors import UserError
from smartclip_det.engine.optim import on_fast_kernels


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class NamedGroupsConstructor:
    """Builds one optimizer whose parameter groups are defined by prefixes of parameter names.

    ``paramwise_cfg=dict(groups=dict(NAME=dict(prefixes=[...], lr=..., weight_decay=..., warmup=...)))``. Parameters
    that match no prefix form the group ``rest`` with the optimizer's own settings. ``warmup`` is read by
    :class:`WarmupCosineLR`.
    """

    def __init__(self, optim_wrapper_cfg: Mapping[str, Any], paramwise_cfg: Mapping[str, Any] | None = None) -> None:
        self.wrapper = dict(optim_wrapper_cfg)
        self.optimizer = dict(self.wrapper.pop("optimizer"))
        options = dict(paramwise_cfg or {})
        self.groups: dict[str, dict[str, Any]] = {k: dict(v) for k, v in options.pop("groups", {}).items()}
        if options or any("prefixes" not in g for g in self.groups.values()):
            raise UserError(
                "paramwise_cfg of NamedGroupsConstructor must be dict(groups=dict(NAME=dict(prefixes=[...], lr=...))); "
                f"given {paramwise_cfg}."
            )

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the wrapper; an empty group is an error, since its settings would have no effect."""
        model = model.module if is_model_wrapper(model) else model
        groups: dict[str, list[nn.Parameter]] = {name: [] for name in [*self.groups, "rest"]}
        for key, value in model.named_parameters():
            if value.requires_grad:
                owners = [n for n, g in self.groups.items() if key.startswith(tuple(g["prefixes"]))]
                groups[owners[0] if owners else "rest"].append(value)
        empty = [n for n in self.groups if not groups[n]]
        if empty:
            known = sorted({".".join(k.split(".")[:2]) for k, v in model.named_parameters() if v.requires_grad})
            raise UserError(
                f"Optimizer groups without trained parameters: {', '.join(empty)}. Trained: {', '.join(known)}."
            )
        rows = [
            {"params": params, "name": name, **{k: v for k, v in self.groups.get(name, {}).items() if k != "prefixes"}}
            for name, params in groups.items()
            if params
        ]
        optimizer = OPTIMIZERS.build({**on_fast_kernels(self.optimizer, model), "params": rows})
        return OPTIM_WRAPPERS.build({"type": "OptimWrapper", **self.wrapper, "optimizer": optimizer})


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(_ParamScheduler):
    """Linear warm-up followed by half a cosine to zero, per step; each group may have its own warm-up.

    Step s (from 0) of T has the rate ``lr (s + 1) / w`` while s < w, then ``lr (1 + cos(pi (s - w) / (T - w))) / 2``.

    Args:
        optimizer: optimizer or wrapper; the ``warmup`` of a group takes precedence over the argument.
        warmup: w in steps.
        end: T in steps; set by the runner to the length of the training unless given.
        kwargs: arguments of MMEngine's schedulers; ``by_epoch`` must be False.
    """

    def __init__(self, optimizer: Any, *, warmup: int = 0, end: int, **kwargs: Any) -> None:
        if kwargs.get("by_epoch", True):
            raise UserError("WarmupCosineLR counts steps: set by_epoch=False.")
        kwargs.pop("epoch_length", None)
        self.warmups = [int(g.get("warmup", warmup)) for g in optimizer.param_groups]
        if end <= max(self.warmups):
            raise UserError(
                f"A warm-up of {max(self.warmups)} steps is too long for a training of {end} steps. "
                "Set param_scheduler.warmup (or warmup of a parameter group) lower, or train longer."
            )
        super().__init__(optimizer, "lr", end=end, **kwargs)

    def _get_value(self) -> list[float]:
        return [b * self._share(w) for b, w in zip(self.base_values, self.warmups, strict=True)]

    def _share(self, warmup: int) -> float:
        step = self.last_step
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (self.end - warmup)))

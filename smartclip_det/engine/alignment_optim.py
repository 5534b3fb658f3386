"""Optimizer groups and schedule of alignment runs (pretrain reference 1.4).

The release has two AdamW; one AdamW with groups does the same and works with every strategy of MMEngine.
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
    """One optimizer whose parameter groups are named by prefixes of parameter names.

    ``paramwise_cfg=dict(groups=dict(NAME=dict(prefixes=[...], lr=..., weight_decay=..., warmup=...)))``; what no
    prefix matches is the group ``rest`` with the optimizer's own settings. ``warmup`` is read by
    :class:`WarmupCosineLR`.
    """

    def __init__(self, optim_wrapper_cfg: Mapping[str, Any], paramwise_cfg: Mapping[str, Any] | None = None) -> None:
        self.wrapper = dict(optim_wrapper_cfg)
        self.optimizer = dict(self.wrapper.pop("optimizer"))
        options = dict(paramwise_cfg or {})
        self.groups: dict[str, dict[str, Any]] = {k: dict(v) for k, v in options.pop("groups", {}).items()}
        if options or any("prefixes" not in g for g in self.groups.values()):
            raise UserError(
                "paramwise_cfg of NamedGroupsConstructor is dict(groups=dict(NAME=dict(prefixes=[...], lr=...))); "
                f"given {paramwise_cfg}."
            )

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build; a group that would be empty is an error, since its settings would change nothing."""
        model = model.module if is_model_wrapper(model) else model
        found: dict[str, list[nn.Parameter]] = {name: [] for name in [*self.groups, "rest"]}
        for key, value in model.named_parameters():
            if value.requires_grad:
                owners = [n for n, g in self.groups.items() if key.startswith(tuple(g["prefixes"]))]
                found[owners[0] if owners else "rest"].append(value)
        empty = [n for n in self.groups if not found[n]]
        if empty:
            known = sorted({".".join(k.split(".")[:2]) for k, v in model.named_parameters() if v.requires_grad})
            raise UserError(
                f"Optimizer groups without a trained parameter: {', '.join(empty)}. Trained are: {', '.join(known)}."
            )
        rows = [
            {"params": params, "name": name, **{k: v for k, v in self.groups.get(name, {}).items() if k != "prefixes"}}
            for name, params in found.items()
            if params
        ]
        optimizer = OPTIMIZERS.build({**on_fast_kernels(self.optimizer, model), "params": rows})
        return OPTIM_WRAPPERS.build({"type": "OptimWrapper", **self.wrapper, "optimizer": optimizer})


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(_ParamScheduler):
    """Linear warm-up, then a half cosine to zero; step by step, each group with its own warm-up.

    Step s (from 0) of T has the rate ``lr (s + 1) / w`` while s < w, then ``lr (1 + cos(pi (s - w) / (T - w))) / 2``.
    """

    def __init__(self, optimizer: Any, *, warmup: int = 0, end: int, **kwargs: Any) -> None:
        """Build.

        Args:
            optimizer: optimizer or wrapper; a group's ``warmup`` wins over the argument.
            warmup: w in steps.
            end: T in steps; the runner gives the whole training. Shorter runs may keep a longer horizon.
            kwargs: of MMEngine's schedulers; ``by_epoch`` must be False.
        """
        if kwargs.get("by_epoch", True):
            raise UserError("WarmupCosineLR counts steps: give by_epoch=False.")
        kwargs.pop("epoch_length", None)
        self.warmups = [int(g.get("warmup", warmup)) for g in optimizer.param_groups]
        if end <= max(self.warmups):
            raise UserError(f"A warm-up of {max(self.warmups)} steps does not fit a training of {end}.")
        super().__init__(optimizer, "lr", end=end, **kwargs)

    def _get_value(self) -> list[float]:
        return [b * self._share(w) for b, w in zip(self.base_values, self.warmups, strict=True)]

    def _share(self, warmup: int) -> float:
        step = self.last_step
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (self.end - warmup)))

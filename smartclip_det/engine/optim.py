"""Optimizer wrappers and constructors that MMEngine lacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from torch import nn

from smartclip_det.utils.devices import bf16_pays


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Autocast to bfloat16 where the device has it, otherwise float32, which is told once.

    bfloat16 needs no loss scaling. MMEngine's own wrapper refuses CPUs.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._bf16: bool | None = None

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[Any]:
        """The forward pass of a training step."""
        device = next(model.parameters()).device
        if self._bf16 is None:
            self._bf16 = _all_have_bf16(device)
        with super().optim_context(model), torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._bf16):
            yield


#: Optimizers that are fused on a card.
_FUSED = ("Adam", "AdamW")
#: Settings that choose a kernel; one that a config names holds.
KERNELS = ("fused", "foreach", "capturable", "differentiable")


def on_fast_kernels(optimizer: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """An optimizer's settings, with ``fused=True`` for Adam and AdamW where all that is trained is on CUDA devices.

    One kernel then updates many parameters, where torch's default has about a dozen of them. The CPU keeps the default.
    """
    given = dict(optimizer)
    if given.get("type") in _FUSED and not any(k in given for k in KERNELS):
        trained = [p for p in model.parameters() if p.requires_grad]
        if trained and all(p.is_cuda for p in trained):
            given["fused"] = True
    return given


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class FusedConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default, with :func:`on_fast_kernels`; ``launch.prepare`` sets it where a config names none."""

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build."""
        self.optimizer_cfg = on_fast_kernels(self.optimizer_cfg, model)
        return super().__call__(model)


def _all_have_bf16(device: torch.device) -> bool:
    """Processes may sit on different machines, and must train in one precision."""
    slow = torch.tensor(float(not bf16_pays(device.type)), device=device)
    all_reduce(slow)
    if slow:
        print_log(f"bfloat16 is slow or absent on this {device.type}: training in float32.", "current")
    return not slow

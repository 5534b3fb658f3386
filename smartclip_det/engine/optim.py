"""Optimizer wrappers and constructors that MMEngine does not have."""

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
    """Autocast to bfloat16 if the device supports it, otherwise float32 with a log message.

    bfloat16 needs no loss scaling. MMEngine's own wrapper does not support CPUs.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._bf16: bool | None = None

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[Any]:
        """Context of the forward pass of a training step."""
        device = next(model.parameters()).device
        if self._bf16 is None:
            self._bf16 = _all_have_bf16(device)
        with super().optim_context(model), torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._bf16):
            yield


#: Optimizers with a fused CUDA kernel.
_FUSED = ("Adam", "AdamW")
#: Settings that select a kernel; if a config sets one, it is kept.
KERNELS = ("fused", "foreach", "capturable", "differentiable")


def on_fast_kernels(optimizer: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Optimizer settings, with ``fused=True`` for Adam and AdamW if all trained parameters are on CUDA devices.

    The fused optimizer updates many parameters with one kernel instead of about a dozen. The CPU keeps the default.
    """
    settings = dict(optimizer)
    if settings.get("type") in _FUSED and not any(k in settings for k in KERNELS):
        trained = [p for p in model.parameters() if p.requires_grad]
        if trained and all(p.is_cuda for p in trained):
            settings["fused"] = True
    return settings


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class FusedConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default with :func:`on_fast_kernels`; ``launch.prepare`` sets it unless a config names one."""

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build."""
        self.optimizer_cfg = on_fast_kernels(self.optimizer_cfg, model)
        return super().__call__(model)


def _all_have_bf16(device: torch.device) -> bool:
    """Whether all processes, possibly on different machines, can use bfloat16; they must train in one precision."""
    slow = torch.tensor(float(not bf16_pays(device.type)), device=device)
    all_reduce(slow)
    if slow:
        print_log(f"bfloat16 is slow or absent on this {device.type}: training in float32.", "current")
    return not slow

"""Optimizer wrappers that MMEngine lacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
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


def _all_have_bf16(device: torch.device) -> bool:
    """Processes may sit on different machines, and must train in one precision."""
    slow = torch.tensor(float(not bf16_pays(device.type)), device=device)
    all_reduce(slow)
    if slow:
        print_log(f"bfloat16 is slow or absent on this {device.type}: training in float32.", "current")
    return not slow

"""Optimizer wrappers that MMEngine lacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Autocast to bfloat16 on any device; bfloat16 needs no loss scaling. MMEngine's own wrapper refuses CPUs."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[Any]:
        """The forward pass of a training step."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield

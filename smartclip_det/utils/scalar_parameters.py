"""Parameters of one number: ``[1]`` in the model, since FSDP shards no scalars, and scalars in files, as peers read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def scalar_parameter(value: float) -> nn.Parameter:
    """A parameter ``[1]``; its module tells :func:`keep_scalars_in_files` the name."""
    return nn.Parameter(torch.tensor([float(value)]))


def keep_scalars_in_files(module: nn.Module, *names: str) -> None:
    """Let the state dict of a module hold its ``[1]`` parameters as scalars, and take scalars back.

    Args:
        module: that holds the parameters itself.
        names: of the parameters. An empty piece, which FSDP leaves on a process without a share, stays as it is.
    """

    def save(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
        for name in names:
            value = state.get(prefix + name)
            if isinstance(value, Tensor) and value.shape == (1,):
                state[prefix + name] = value.reshape(())

    def load(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
        for name in names:
            value = state.get(prefix + name)
            if isinstance(value, Tensor) and value.dim() == 0:
                state[prefix + name] = value.reshape(1)

    module.register_state_dict_post_hook(save)
    module.register_load_state_dict_pre_hook(load)

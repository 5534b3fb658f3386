"""Parameters of one number: ``[1]`` in the model, since FSDP shards no scalars, and scalars in files, as peers read."""

from __future__ import annotations

from functools import partial
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
    # Functions of the module, not closures: a model stays one that can be pickled and copied.
    module.register_state_dict_post_hook(partial(_save, names=names))
    module.register_load_state_dict_pre_hook(partial(_load, names=names))


def _save(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any, names: tuple[str, ...]) -> None:
    for name in names:
        value = state.get(prefix + name)
        if isinstance(value, Tensor) and value.shape == (1,):
            state[prefix + name] = value.reshape(())


def _load(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any, names: tuple[str, ...]) -> None:
    for name in names:
        value = state.get(prefix + name)
        if isinstance(value, Tensor) and value.dim() == 0:
            state[prefix + name] = value.reshape(1)

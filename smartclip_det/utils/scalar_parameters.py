"""Scalar parameters: ``[1]`` in the model, since FSDP cannot shard scalars, and true scalars in state dicts."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def scalar_parameter(value: float) -> nn.Parameter:
    """A parameter of shape ``[1]``; its module registers the name with :func:`keep_scalars_in_files`."""
    return nn.Parameter(torch.tensor([float(value)]))


def keep_scalars_in_files(module: nn.Module, *names: str) -> None:
    """Make the state dict of a module store its ``[1]`` parameters as scalars, and load scalars into them.

    Args:
        module: module that owns the parameters.
        names: names of the parameters. An empty shard, which FSDP leaves on some ranks, is stored unchanged.
    """
    # Partials of module-level functions, not closures, so that the model can still be pickled and copied.
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

"""Frozen towers used by a model that neither trains nor saves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smartclip_det.core.errors import UserError
from smartclip_det.models.towers.source import load_towers


def hash_tensor(tower_hash: str) -> Tensor:
    """Encode the hash of towers as a tensor of bytes, so that a checkpoint records the towers it was trained with."""
    return torch.tensor(list(tower_hash.encode()), dtype=torch.uint8)


def refuse_other_towers(state: Tensor, tower_hash: str) -> None:
    """Raise if a checkpoint's :func:`hash_tensor` belongs to other towers, whose embeddings are not comparable.

    Raises:
        UserError: with both hashes, and how to select the right towers.
    """
    theirs = bytes(state.tolist()).decode()
    if theirs != tower_hash:
        raise UserError(
            f"The checkpoint was trained with towers {theirs}, but the config builds towers {tower_hash}. Use the "
            "same towers, e.g. --cfg-options towers.checkpoint=PATH."
        )


class FrozenTowers(nn.Module):
    """Towers whose weights are not registered: the config rebuilds them, and checkpoints stay small.

    A checkpoint records their hash and cannot be loaded with other towers.
    """

    frozen = True

    def __init__(self, source: Mapping[str, Any]) -> None:
        """Load the towers.

        Args:
            source: see :func:`load_towers`.
        """
        super().__init__()
        towers = load_towers(source).requires_grad_(False).eval()
        self.tower_hash = towers.checkpoint_hash
        # In a list, so that nn.Module does not register them.
        self.unregistered = [towers]

    def get_extra_state(self) -> Tensor:
        """Hash of the towers, saved in the checkpoint."""
        return hash_tensor(self.tower_hash)

    def set_extra_state(self, state: Tensor) -> None:
        """Reject a checkpoint trained with other towers."""
        refuse_other_towers(state, self.tower_hash)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Also move the towers, which are not a submodule."""
        self.unregistered[0]._apply(fn)
        return super()._apply(fn, recurse)

"""Towers that a model uses and neither trains nor saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smartclip_det.core.errors import UserError
from smartclip_det.models.towers.source import load_towers


def hash_tensor(tower_hash: str) -> Tensor:
    """The hash of towers as a tensor of bytes, so that a checkpoint knows what it was trained on."""
    return torch.tensor(list(tower_hash.encode()), dtype=torch.uint8)


def refuse_other_towers(state: Tensor, tower_hash: str) -> None:
    """Raise where a checkpoint's :func:`hash_tensor` is of other towers: its images would meet texts of another space.

    Raises:
        UserError: telling both hashes and how to give the same towers again.
    """
    theirs = bytes(state.tolist()).decode()
    if theirs != tower_hash:
        raise UserError(
            f"The checkpoint was trained on towers {theirs}, the config builds towers {tower_hash}. Give the "
            "same towers again, e.g. --cfg-options towers.checkpoint=PATH."
        )


class FrozenTowers(nn.Module):
    """Holds towers without registering their weights: the config gives them again, and checkpoints stay small.

    A checkpoint remembers the towers' hash, and is refused with other ones.
    """

    frozen = True

    def __init__(self, source: Mapping[str, Any]) -> None:
        """Load.

        Args:
            source: see :func:`load_towers`.
        """
        super().__init__()
        towers = load_towers(source).requires_grad_(False).eval()
        self.tower_hash = towers.checkpoint_hash
        # In a list, where nn.Module does not look.
        self.held = [towers]

    def get_extra_state(self) -> Tensor:
        """The hash, for the checkpoint."""
        return hash_tensor(self.tower_hash)

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse what was trained on other towers."""
        refuse_other_towers(state, self.tower_hash)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move with the model, although no module of it."""
        self.held[0]._apply(fn)
        return super()._apply(fn, recurse)

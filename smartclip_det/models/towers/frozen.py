"""Towers that a model uses and neither trains nor saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smartclip_det.core.errors import UserError
from smartclip_det.models.towers.source import load_towers


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
        """The hash, as a tensor of bytes."""
        return torch.tensor(list(self.tower_hash.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse what was trained on other towers."""
        theirs = bytes(state.tolist()).decode()
        if theirs != self.tower_hash:
            raise UserError(
                f"The checkpoint was trained on towers {theirs}, the config builds towers {self.tower_hash}. Give the "
                "same towers again, e.g. --cfg-options towers.checkpoint=PATH."
            )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move with the model, although no module of it."""
        self.held[0]._apply(fn)
        return super()._apply(fn, recurse)

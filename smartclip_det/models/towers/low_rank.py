"""Low-rank adaptation of towers (LoRA, arXiv 2106.09685): ``W + alpha / r * up @ down``, with W frozen.

Checkpoints store W and both factors, so that training can be resumed exactly; tower readers merge them.

Shape letters: r rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from smartclip_det.core.errors import UserError
from smartclip_det.models.towers.transformer import MLP, Attention

_KEY = re.compile(r"^(?P<module>.*)\.parametrizations\.(?P<weight>\w+)\.(?P<part>original|0\.up|0\.down|0\.factor)$")


class LowRankUpdate(nn.Module):
    """A weight ``[out, in]`` plus a rank-r product that is initially zero."""

    factor: Tensor

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(torch.randn(rank, columns) * columns**-0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))
        self.register_buffer("factor", torch.tensor(alpha / rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The updated weight, same shape."""
        return updated(weight, self.up, self.down, self.factor)


def updated(weight: Tensor, up: Tensor, down: Tensor, factor: Tensor) -> Tensor:
    """``weight + factor * up @ down``."""
    return weight + factor * (up @ down)


def add_low_rank(towers: Iterable[nn.Module], rank: int = 8, alpha: float | None = None) -> int:
    """Freeze towers and add a trainable low-rank update to every attention and MLP weight.

    Args:
        towers: modules that contain ``Attention`` and ``MLP``.
        rank: r, from 1 to the smaller side of the weights.
        alpha: factor times rank; default: the rank, i.e. a factor of 1.

    Returns:
        Number of trainable parameters added.
    """
    if rank < 1:
        raise UserError(f"The rank of low_rank must be at least 1; given {rank}.")
    added = 0
    for tower in towers:
        tower.requires_grad_(False)
        before = added
        for part in list(tower.modules()):
            for module, name in _weights(part):
                weight = getattr(module, name)
                update = LowRankUpdate(weight, min(rank, *weight.shape), alpha or rank)
                parametrize.register_parametrization(module, name, update)
                added += update.down.numel() + update.up.numel()
        if added == before:
            raise UserError(
                f"low_rank updates attention and MLP weights, and {type(tower).__name__} has none. Train all of it "
                "(low_rank=None)."
            )
    return added


def _weights(part: nn.Module) -> list[tuple[nn.Module, str]]:
    if isinstance(part, Attention):
        return [(part, "in_proj_weight"), (part.out_proj, "weight")]
    return [(part.c_fc, "weight"), (part.c_proj, "weight")] if isinstance(part, MLP) else []


def merge_low_rank(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge low-rank updates of a state dict under the original names; other entries are kept."""
    out: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        match = _KEY.match(key)
        if match is None:
            out[key] = value
        else:
            parts.setdefault(f"{match['module']}.{match['weight']}", {})[match["part"].removeprefix("0.")] = value
    for name, p in parts.items():
        missing = {"original", "up", "down", "factor"} - set(p)
        if missing:
            raise UserError(f"The low-rank update of {name} lacks {', '.join(sorted(missing))}.")
        out[name] = updated(p["original"], p["up"], p["down"], p["factor"])
    return out

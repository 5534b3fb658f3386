"""Token ids of many texts, with their lengths on the host, so that no GPU synchronisation is needed.

Shape letters: K texts, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def pad_texts(ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Pad the ids of K texts into one tensor.

    Args:
        ids: ids of each text, without padding.

    Returns:
        ``tokens [K, L]``; ``lengths``, K numbers on the host; ``order [K]`` that sorts texts by length, and
        ``back [K]``, its inverse.
    """
    lengths = [len(t) for t in ids]
    longest = max(lengths)
    return _described(torch.tensor([[*t, *[0] * (longest - len(t))] for t in ids]), lengths)


def describe_texts(tokens: Tensor) -> dict[str, Any]:
    """Like :func:`pad_texts` for ``[K, L]`` ids on the host, trimmed to the longest text (end token: largest id)."""
    lengths = (tokens.argmax(dim=1) + 1).tolist()
    return _described(tokens[:, : max(lengths)], lengths)


def _described(tokens: Tensor, lengths: list[int]) -> dict[str, Any]:
    order = torch.tensor(lengths).argsort(stable=True)
    return {"tokens": tokens, "lengths": tuple(lengths), "order": order, "back": order.argsort()}


def texts_to(texts: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move its tensors to a device."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in texts.items()}

"""Token ids of many texts with what the host must know of them, so that no card is waited for.

Shape letters: K texts, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def pad_texts(ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Ids of K texts as one tensor.

    Args:
        ids: of each text, without padding on the right.

    Returns:
        ``tokens [K, L]``; ``lengths``, K numbers on the host; ``order [K]`` that sorts texts by length, and
        ``back [K]`` that undoes it.
    """
    lengths = [len(t) for t in ids]
    longest = max(lengths)
    return _described(torch.tensor([[*t, *[0] * (longest - len(t))] for t in ids]), lengths)


def describe_texts(tokens: Tensor) -> dict[str, Any]:
    """The same of ``[K, L]`` ids on the host, cut to the longest text; the end token is the largest id of a row."""
    lengths = (tokens.argmax(dim=1) + 1).tolist()
    return _described(tokens[:, : max(lengths)], lengths)


def _described(tokens: Tensor, lengths: list[int]) -> dict[str, Any]:
    order = torch.tensor(lengths).argsort(stable=True)
    return {"tokens": tokens, "lengths": tuple(lengths), "order": order, "back": order.argsort()}


def texts_to(texts: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Its tensors on a device."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in texts.items()}

"""Strings to text vectors and masks: the one forward pass that vocabularies, grounding and retrieval share.

Shape letters: K texts, D joint embedding, L tokens, W text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from smartclip_det.core.similarity import binary_masks
from smartclip_det.models.towers.mask_network import token_keep


@dataclass(frozen=True)
class EncodedTexts:
    """K texts as the towers read them.

    Attributes:
        embeds: ``[K, D]`` projected end-token vectors in fp32, not normalised.
        mask_probs: ``[K, D]`` mask probabilities in fp32; ones for towers without a mask network.
        has_masks: whether a mask network gave them.
        tokens: ``[K, L]`` ids, on the host.
        keep: ``[K, L]`` True up to and including the end token.
        states: ``[K, L, W]`` token states; None for texts that were encoded by length.
    """

    embeds: Tensor
    mask_probs: Tensor
    has_masks: bool
    tokens: Tensor
    keep: Tensor
    states: Tensor | None

    @property
    def masks(self) -> Tensor:
        """``[K, D]`` binary masks."""
        return binary_masks(self.mask_probs)


@torch.no_grad()
def encode_texts(encoder: Any, texts: Sequence[str], *, truncate: bool = False, chunks: int = 1) -> EncodedTexts:
    """Encode K texts in one pass, in the precision of the weights whatever the autocast state: results are cached.

    Args:
        encoder: an :class:`Encoder`, or a :class:`TextSide`.
        texts: the texts; the caller bounds their number.
        truncate: cut longer texts; otherwise one over the token limit is an error.
        chunks: above 1, texts are encoded in so many chunks of like length (:meth:`SmartCLIP.forward_text_by_length`),
            which saves the work on padding and keeps no token states.

    Raises:
        UserError: for a text over the token limit.
    """
    tokens = encoder.tokenize(texts, truncate=truncate)
    device = encoder.logit_scale.device
    there = tokens.to(device)
    states: Tensor | None = None
    with torch.autocast(device.type, enabled=False):
        if chunks > 1:
            embeds, logits = encoder.forward_text_by_length(there, chunks)
        else:
            found = encoder.forward_text(there)
            embeds, logits, states = found.embeds, found.mask_logits, found.states
    return EncodedTexts(
        embeds.float(), mask_probabilities(logits, embeds), logits is not None, tokens, token_keep(there), states
    )


def mask_probabilities(logits: Tensor | None, embeds: Tensor) -> Tensor:
    """Probabilities of mask logits in fp32; without a mask network, ones in the shape of ``embeds``."""
    return torch.ones_like(embeds, dtype=torch.float32) if logits is None else logits.float().sigmoid()

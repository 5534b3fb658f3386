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
    """Encoder output for K texts.

    Attributes:
        embeds: ``[K, D]`` projected end-token vectors in fp32, not normalised.
        mask_probs: ``[K, D]`` mask probabilities in fp32; ones for towers without a mask network.
        has_masks: whether they come from a mask network.
        tokens: ``[K, L]`` token ids, on the host.
        keep: ``[K, L]`` True up to and including the end token.
        states: ``[K, L, W]`` token states; None for texts encoded in chunks.
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
    """Encode K texts, with autocast disabled because callers cache the results.

    Args:
        encoder: an :class:`Encoder`, or a :class:`TextSide`.
        texts: the texts; the caller limits the batch size.
        truncate: truncate longer texts; otherwise a text over the token limit is an error.
        chunks: if above 1, encode in this many chunks of similar length (:meth:`SmartCLIP.forward_text_by_length`),
            which reduces padding and returns no token states.

    Raises:
        UserError: for a text over the token limit.
    """
    tokens = encoder.tokenize(texts, truncate=truncate)
    device = encoder.logit_scale.device
    ids = tokens.to(device)
    states: Tensor | None = None
    with torch.autocast(device.type, enabled=False):
        if chunks > 1:
            embeds, logits = encoder.forward_text_by_length(ids, chunks)
        else:
            features = encoder.forward_text(ids)
            embeds, logits, states = features.embeds, features.mask_logits, features.states
    return EncodedTexts(
        embeds.float(), mask_probabilities(logits, embeds), logits is not None, tokens, token_keep(ids), states
    )


def mask_probabilities(logits: Tensor | None, embeds: Tensor) -> Tensor:
    """Probabilities of mask logits in fp32; without a mask network, ones in the shape of ``embeds``."""
    return torch.ones_like(embeds, dtype=torch.float32) if logits is None else logits.float().sigmoid()

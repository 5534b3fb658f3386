"""Text side of towers whose image tower is the backbone of a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from smartclip_det.core.text_bank import TextBank


class TextSide:
    """Text tower and mask network, identified by the hash of the towers as loaded.

    The backbone may be trained further; text embeddings stay those of the original towers.
    """

    def __init__(self, towers: Any, checkpoint_hash: str) -> None:
        """Use the text side of towers.

        Args:
            towers: a :class:`SmartCLIP`; its image tower is neither used nor moved.
            checkpoint_hash: hash of the towers as loaded.
        """
        self._towers, self._facts = towers, towers.provenance(checkpoint_hash)
        self.config = towers.config

    @property
    def logit_scale(self) -> Tensor:
        """Logit scale; it is on the device of the text side."""
        return self._towers.logit_scale

    @property
    def checkpoint_hash(self) -> str:
        """Hash of the towers as loaded."""
        return self._facts["checkpoint_hash"]

    def provenance(self) -> dict[str, str]:
        """Identifies the rows of a bank made by this text side."""
        return dict(self._facts)

    def to(self, device: torch.device | str) -> TextSide:
        """Move the text tower, the mask network and the scale; returns itself."""
        for part in (self._towers.text_tower, self._towers.mask_network):
            if part is not None:
                part.to(device)
        self._towers.logit_scale.data = self._towers.logit_scale.data.to(device)
        return self

    def eval(self) -> TextSide:
        """Set eval mode; returns itself."""
        for part in (self._towers.text_tower, self._towers.mask_network):
            if part is not None:
                part.eval()
        return self

    def tokenize(self, texts: str | Sequence[str], *, truncate: bool = False) -> Tensor:
        """``[K, L]`` ids."""
        return self._towers.tokenize(texts, truncate=truncate)

    def forward_text(self, tokens: Tensor) -> Any:
        """Embeds, states and mask logits of ``[K, L]`` ids."""
        return self._towers.forward_text(tokens)

    def mask_logits(self, states: Tensor, keep: Tensor) -> Tensor | None:
        """``[K, D]`` mask logits, or None."""
        return self._towers.mask_logits(states, keep)

    def encode_text(self, texts: str | Sequence[str], **options: Any) -> TextBank:
        """A bank with one class and one row per text; see :meth:`SmartCLIP.encode_text`."""
        return replace(self._towers.encode_text(texts, **options), provenance=self.provenance())

"""Text-bank handling shared by all open-vocabulary detectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank


class ActiveBank:
    """Mixin that stores the active bank and passes it down as an argument; it is not part of the state dict.

    During runs only :class:`VocabularyHook` sets it, at inference only :meth:`Predictor.set_vocabulary`.
    """

    policy: ScoringPolicy
    backbone: Any
    default_vocabulary: Mapping[str, Any] | None = None
    _bank: TextBank | None = None

    @property
    def text_bank(self) -> TextBank | None:
        """The active bank, or None."""
        return self._bank

    def set_text_bank(self, bank: TextBank | None) -> TextBank | None:
        """Set the active bank and return the previous one. A bank made by other towers is an error."""
        made_by = None if bank is None else bank.provenance.get("checkpoint_hash")
        own = getattr(self.backbone, "tower_hash", None)
        if made_by and own and made_by != own:
            raise UserError(
                f"The bank was encoded by towers {made_by}, but the backbone has towers {own}: their embeddings are "
                "not comparable. Encode the vocabulary with the backbone's checkpoint."
            )
        before, self._bank = self._bank, bank
        return before

    def _active_bank(self, device: torch.device) -> TextBank:
        if self._bank is None and self.default_vocabulary is not None:
            from smartclip_det.models.vocabulary import bank_from_config

            self.set_text_bank(bank_from_config(self.default_vocabulary, self.policy.template_order))
        if self._bank is None:
            raise UserError(
                "No vocabulary is set. For runs add a VocabularyHook to custom_hooks; for inference call "
                "Predictor.set_vocabulary([...]) or detector.set_text_bank(bank)."
            )
        self._bank = self._bank.to(device)
        return self._bank

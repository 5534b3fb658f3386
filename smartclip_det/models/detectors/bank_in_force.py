"""What every open-vocabulary detector does with its text bank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank


class BankInForce:
    """Holds the bank in force and passes it down as an argument; it is in no state dict.

    During runs :class:`VocabularyHook` is the only writer, at run time :meth:`Predictor.set_vocabulary`.
    """

    policy: ScoringPolicy
    backbone: Any
    default_vocabulary: Mapping[str, Any] | None = None
    _bank: TextBank | None = None

    @property
    def text_bank(self) -> TextBank | None:
        """The bank in force, or None."""
        return self._bank

    def set_text_bank(self, bank: TextBank | None) -> TextBank | None:
        """Put a bank in force; returns the one before. A bank of other towers is refused."""
        made_by = None if bank is None else bank.provenance.get("checkpoint_hash")
        mine = getattr(self.backbone, "tower_hash", None)
        if made_by and mine and made_by != mine:
            raise UserError(
                f"The bank was encoded by towers {made_by}, the backbone is of towers {mine}: texts and images would "
                "not share a space. Encode the vocabulary with the backbone's checkpoint."
            )
        before, self._bank = self._bank, bank
        return before

    def _bank_in_force(self, device: torch.device) -> TextBank:
        if self._bank is None and self.default_vocabulary is not None:
            from smartclip_det.models.vocabulary import bank_from_config

            self.set_text_bank(bank_from_config(self.default_vocabulary, self.policy.template_order))
        if self._bank is None:
            raise UserError(
                "No vocabulary is in force. Runs need a VocabularyHook in custom_hooks; at run time call "
                "Predictor.set_vocabulary([...]) or detector.set_text_bank(bank)."
            )
        self._bank = self._bank.to(device)
        return self._bank

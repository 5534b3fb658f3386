"""Text banks as graph inputs, and the .npz file that feeds them.

Shape letters: K texts, D joint embedding.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.similarity import binary_masks
from smartclip_det.core.text_bank import TextBank


class InputBank(TextBank):
    """A bank of traced tensors: one row per class, all classes unseen, no names.

    It inherits the scoring of :class:`TextBank` but not its validation, which reads values.

    Args:
        embeds: ``[K, D]``.
        masks: ``[K, D]`` in [0, 1].
        background: background bank of the detector, stored in the graph.
    """

    def __init__(self, embeds: Tensor, masks: Tensor, background: TextBank | None) -> None:
        seen = torch.zeros_like(embeds[:, 0], dtype=torch.bool)
        for name, value in (("embeds", embeds), ("masks", masks), ("seen", seen), ("background", background)):
            object.__setattr__(self, name, value)

    def resolved_masks(self, mask_mode: str) -> Tensor | None:
        """``[K, D]`` masks for ``hard``, ``soft`` or ``off``."""
        if mask_mode == "off":
            return None
        return binary_masks(self.masks) if mask_mode == "hard" else self.masks

    def class_mean(self, row_values: Tensor) -> Tensor:
        """The identity: every row is a class."""
        return row_values


def check_input_policy(policy: ScoringPolicy) -> None:
    """Reject mask modes that depend on the texts of a bank.

    Raises:
        UserError: the mode is a control, ``random`` or ``shuffled``.
    """
    for mode in (policy.mask_mode, policy.dense_mode):
        if mode in ("random", "shuffled"):
            raise UserError(
                f"mask_mode={mode!r} is a control that needs the texts, which a bank input does not have. "
                "Export without --bank-input, or use hard, soft or off."
            )


def bank_rows(bank: TextBank, policy: ScoringPolicy) -> tuple[Tensor, Tensor]:
    """``embeds`` and ``masks``, both ``[K, D]`` fp32, for a graph with a bank input.

    Raises:
        UserError: the bank has several rows per class, which the graph cannot average.
    """
    if len(bank.texts) != len(bank):
        raise UserError(
            f"The bank has {len(bank.texts)} rows for {len(bank)} names; a bank input takes one row per name. Use "
            "template_order=average_state without synonyms, or export without --bank-input."
        )
    soft = "soft" in (policy.mask_mode, policy.dense_mode) and bank.mask_probs is not None
    masks = bank.mask_probs if soft else bank.masks
    assert masks is not None
    return bank.embeds.float(), masks.float()


def write_bank(bank: TextBank, policy: ScoringPolicy, path: Path) -> Path:
    """Write the rows of a bank as ``.npz``: ``names [K]``, ``embeds`` and ``masks [K, D]``, ``provenance`` (JSON)."""
    embeds, masks = (t.cpu().numpy() for t in bank_rows(bank, policy))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as handle:
        np.savez(handle, names=np.array(bank.names), embeds=embeds, masks=masks, provenance=json.dumps(bank.provenance))
    return path

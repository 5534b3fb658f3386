"""Text banks in graphs: rows that are inputs, and the file that feeds them.

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
    """A bank whose rows are inputs of a graph: one row a class, none seen in training, no names.

    It skips the checks of :class:`TextBank`, which read values that a traced graph does not have, and inherits the
    scores.
    """

    def __init__(self, embeds: Tensor, masks: Tensor, background: TextBank | None) -> None:
        """Build.

        Args:
            embeds: ``[K, D]``.
            masks: ``[K, D]`` in [0, 1].
            background: of the exported detector; constants of the graph.
        """
        seen = torch.zeros_like(embeds[:, 0], dtype=torch.bool)
        for name, value in (("embeds", embeds), ("masks", masks), ("seen", seen), ("background", background)):
            object.__setattr__(self, name, value)

    def resolved_masks(self, mask_mode: str) -> Tensor | None:
        """``[K, D]`` masks of a mode that needs no texts."""
        if mask_mode == "off":
            return None
        return binary_masks(self.masks) if mask_mode == "hard" else self.masks

    def class_mean(self, row_values: Tensor) -> Tensor:
        """Every row is a class."""
        return row_values


def check_input_policy(policy: ScoringPolicy) -> None:
    """Refuse mask modes whose masks depend on the texts of a bank.

    Raises:
        UserError: for the controls ``random`` and ``shuffled``.
    """
    for mode in (policy.mask_mode, policy.dense_mode):
        if mode in ("random", "shuffled"):
            raise UserError(
                f"mask_mode={mode!r} is a control that needs the texts: a graph with the bank as input has none. "
                "Export it with the vocabulary folded in, or choose hard, soft or off."
            )


def bank_rows(bank: TextBank, policy: ScoringPolicy) -> tuple[Tensor, Tensor]:
    """``embeds`` and ``masks``, both ``[K, D]`` fp32, that feed a graph with the bank as input.

    Raises:
        UserError: for a bank with several rows a class, which such a graph cannot average.
    """
    if len(bank.texts) != len(bank):
        raise UserError(
            f"The bank has {len(bank.texts)} rows for {len(bank)} names; a graph with the bank as input takes one row "
            "a name. Use template_order=average_state without synonyms, or fold the vocabulary in."
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

"""Fused class scores of regions, for a full vocabulary or in class chunks.

Softmax and renormalised fusions couple all classes, so their totals are first summed over the chunks.

Shape letters: R regions, C classes of a chunk, D joint embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smartclip_det.core.fusion import FUSIONS, fuse_named
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank

if TYPE_CHECKING:
    from smartclip_det.models.roi_heads.open_vocab_bbox_head import OpenVocabBBoxHead

#: Log-totals ``[R, 1]`` of head and dense softmax, and total ``[R, 1]`` of a renormalised fusion; None if not needed.
Totals = tuple[Tensor | None, Tensor | None, Tensor | None]


class ChunkedScorer:
    """Scores of the same regions for one chunk of the vocabulary after another.

    Args:
        head: computes logits and background cosines.
        vectors: ``[R, D]`` of the box head.
        dense_vectors: ``[R, D]`` of the dense map, or None if the policy does not use fusion.
        objectness: ``[R]`` in [0, 1], or None.
        policy: scoring policy.
    """

    def __init__(
        self,
        head: OpenVocabBBoxHead,
        vectors: Tensor,
        dense_vectors: Tensor | None,
        objectness: Tensor | None,
        policy: ScoringPolicy,
    ) -> None:
        self.head, self.vectors, self.dense_vectors = head, vectors, dense_vectors
        self.objectness, self.policy = objectness, policy
        self.softmax = policy.activation == "softmax"

    def totals(self, parts: Sequence[TextBank]) -> Totals:
        """Denominators for :meth:`scores`; not needed for a single chunk, which is normalised by itself."""
        if len(parts) == 1:
            return None, None, None
        det = vlm = None
        if self.softmax:
            det = self._log_total(self.head.logits(self.vectors, part, self.policy) for part in parts)
            if self.dense_vectors is not None:
                vlm = self._log_total(self._dense_logits(part) for part in parts)
        if not FUSIONS[self.policy.fusion].renorm:
            return det, vlm, None
        one = self.vectors.new_ones(len(self.vectors), 1)
        fused = (self._fused(part, det, vlm, one, one[:, 0]) for part in parts)
        sums = [s.sum(dim=1, keepdim=True) for s in self._background_once(fused)]
        return det, vlm, torch.stack(sums).sum(dim=0)

    def _log_total(self, logits: Iterable[Tensor]) -> Tensor:
        """``[R, 1]`` log of the sum over the columns of all chunks."""
        pieces = [piece.logsumexp(dim=1, keepdim=True) for piece in self._background_once(logits)]
        return torch.cat(pieces, dim=1).logsumexp(dim=1, keepdim=True)

    def _background_once(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Under softmax the last column of each chunk is the background: count it in the first chunk only."""
        for n, piece in enumerate(pieces):
            yield piece[:, :-1] if n and self.softmax else piece

    def _dense_logits(self, bank: TextBank) -> Tensor:
        """``[R, C + 1]`` for softmax (background last), ``[R, C]`` for sigmoid."""
        policy, vectors = self.policy, self.dense_vectors
        assert vectors is not None
        cosine = bank.cosine(vectors, policy, mask_mode=policy.dense_mode)
        if self.softmax:
            background = self.head.background_cosine(vectors, bank, policy, policy.dense_mode)
            return policy.dense_temperature * torch.cat([cosine, background], dim=1)
        if policy.sigmoid_reference == "background":
            cosine = cosine - self.head.background_cosine(vectors, bank, policy, policy.dense_mode)
        return policy.dense_temperature * cosine + policy.sigmoid_bias

    def _activated(self, logits: Tensor, log_total: Tensor | None) -> Tensor:
        if not self.softmax:
            return logits.sigmoid()
        return logits.softmax(dim=1) if log_total is None else (logits - log_total).exp()

    def _fused(
        self,
        part: TextBank,
        det_total: Tensor | None,
        vlm_total: Tensor | None,
        total: Tensor | None,
        objectness: Tensor | None,
    ) -> Tensor:
        policy = self.policy
        det = self._activated(self.head.logits(self.vectors, part, policy), det_total)
        vlm = None if self.dense_vectors is None else self._activated(self._dense_logits(part), vlm_total)
        return fuse_named(policy.fusion, det, vlm, part.seen, objectness, policy.alpha, policy.beta, total)

    def scores(
        self, part: TextBank, det_total: Tensor | None, vlm_total: Tensor | None, total: Tensor | None
    ) -> Tensor:
        """``[R, C]`` fused scores of a chunk, without background; the totals come from :meth:`totals`."""
        fused = self._fused(part, det_total, vlm_total, total, self.objectness)
        return fused[:, :-1] if self.softmax else fused

"""Zero-shot grounding: candidate boxes ranked by masked cosine, with optional spatial reasoning.

The reasoning is ReCLIP's (arXiv 2204.05991, section 3.2): soft products of distributions over boxes; the only hard step
is the choice of the best box.

Shape letters: R boxes, E expressions, D joint embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank
from smartclip_det.models.grounding.parsing import ParsedExpression, parse_expression
from smartclip_det.models.regions import RegionEncoder

VIEWS = ("crop", "blur", "circle", "dense")


def relation_matrix(boxes: Tensor, relation: str) -> Tensor:
    """``[R, R]`` 1 where box i has the relation to box j (``within``: the share of i inside j); 0 on the diagonal.

    Args:
        boxes: ``[R, 4]`` xyxy.
        relation: ``left | right | above | below | bigger | smaller | within``.
    """
    check_choice("relation", relation, ("left", "right", "above", "below", "bigger", "smaller", "within"))
    x, y = boxes[:, 0::2].mean(dim=1), boxes[:, 1::2].mean(dim=1)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    if relation == "within":
        low, high = (
            torch.maximum(boxes[:, None, :2], boxes[None, :, :2]),
            torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:]),
        )
        out = (high - low).clamp(min=0).prod(dim=2) / area.clamp(min=1e-6).unsqueeze(1)
    else:
        value, sign = {"left": (x, -1), "right": (x, 1), "above": (y, -1), "below": (y, 1), "bigger": (area, 1),
                       "smaller": (area, -1)}[relation]  # fmt: skip
        out = (sign * (value[:, None] - value[None, :]) > 0).to(boxes.dtype)
    return out.fill_diagonal_(0)


def related(target: Tensor, anchor: Tensor, relation: Tensor) -> Tensor:
    """``[R]`` target distribution times the chance of its relation to the anchor; unchanged where it never holds."""
    return _normalised(target * (relation @ anchor), target)


def extreme(target: Tensor, relation: Tensor) -> Tensor:
    """``[R]`` target distribution under a superlative: P_i times the chance of its relation to another candidate."""
    return _normalised(target * (relation @ target), target)


def _normalised(values: Tensor, fallback: Tensor) -> Tensor:
    total = values.sum()
    return values / total if total > 0 else fallback


class ZeroShotGrounder:
    """Scores candidate boxes of an image for expressions."""

    def __init__(
        self, encoder: RegionEncoder, *, views: Sequence[str] = ("dense",), policy: ScoringPolicy | None = None,
        spatial: bool = False, subtracted: TextBank | None = None,
    ) -> None:  # fmt: skip
        """Build.

        Args:
            encoder: makes region vectors.
            views: views whose logits are summed.
            policy: its ``mask_mode``, ``text_norm``, ``calibration`` and ``temperature`` are used.
            spatial: read relations and superlatives by :func:`parse_expression`.
            subtracted: texts whose mean score, each under its own mask, is taken from every region's: what all texts
                like about a region says nothing about one of them (red circles, arXiv 2304.06712). A fixed bank of
                training captions, never of the evaluated split.
        """
        if not views:
            raise UserError(f"Grounding needs at least one view of {', '.join(VIEWS)}.")
        self.views = [check_choice("view", v, VIEWS) for v in views]
        self.encoder, self.policy, self.spatial = encoder, policy or ScoringPolicy(), spatial
        self.subtracted = subtracted

    def texts(self, expression: str) -> list[str]:
        """The texts that must be in the bank for an expression."""
        if not self.spatial:
            return [expression]
        parsed = parse_expression(expression)
        return [parsed.head, *([parsed.anchor] if parsed.anchor else [])]

    def region_vectors(self, image: Image.Image, boxes: Sequence[Sequence[float]]) -> dict[str, Tensor]:
        """``[R, D]`` for each view; they do not depend on texts."""
        return {v: self.encoder.vectors(image, boxes, v) for v in self.views}

    def cosines(self, vectors: dict[str, Tensor], bank: TextBank) -> Tensor:
        """``[R, K]`` sum over views of the cosine with each text, less the mean of the subtracted bank."""
        out = torch.stack([bank.cosine(v, self.policy) for v in vectors.values()]).sum(dim=0)
        if self.subtracted is not None:
            for v in vectors.values():
                out = out - self.subtracted.cosine(v, self.policy).mean(dim=1, keepdim=True)
        return out

    def evidence(
        self, vectors: dict[str, Tensor], boxes: Sequence[Sequence[float]], expressions: Sequence[str], bank: TextBank
    ) -> Tensor:
        """``[E, R]`` how well each box fits each expression by itself.

        Comparable over images, so that a threshold can answer "none" and "many". It is the mean over views of the
        head's cosine; with ``spatial`` a box that loses to another in a relation or superlative loses what it lacks in
        the reasoned distribution.

        Arguments as in :meth:`score`.
        """
        index = {n: k for k, n in enumerate(bank.names)}
        cosines = self.cosines(vectors, bank) / len(vectors)
        heads = [self.texts(e)[0] for e in expressions]
        plain = cosines[:, [index[h] for h in heads]].t()
        if not self.spatial or not len(boxes):
            return plain
        logits = plain * len(vectors) * self.policy.temperature
        reasoned = self.score(vectors, boxes, expressions, bank).clamp(min=1e-6).log()
        lost = (reasoned - logits.log_softmax(dim=1)).clamp(max=0)
        return plain + lost / (len(vectors) * self.policy.temperature)

    def score(
        self, vectors: dict[str, Tensor], boxes: Sequence[Sequence[float]], expressions: Sequence[str], bank: TextBank
    ) -> Tensor:
        """``[E, R]`` distributions over the boxes.

        Args:
            vectors: what :meth:`region_vectors` gave.
            boxes: R xyxy boxes.
            expressions: E expressions.
            bank: a bank that holds :meth:`texts` of each of them.
        """
        index = {n: k for k, n in enumerate(bank.names)}
        wanted = list(dict.fromkeys(t for e in expressions for t in self.texts(e)))
        missing = [t for t in wanted if t not in index]
        if missing:
            raise UserError(f"The bank lacks {len(missing)} of the expressions' texts, e.g. {missing[0]!r}.")
        logits = self.cosines(vectors, bank) * self.policy.temperature
        chances = {t: logits[:, index[t]].softmax(dim=0) for t in wanted}
        if not self.spatial:
            return torch.stack([chances[e] for e in expressions])
        corners = torch.as_tensor(boxes, dtype=torch.float32).view(-1, 4)
        return torch.stack([self._reason(parse_expression(e), chances, corners) for e in expressions])

    @staticmethod
    def _reason(parsed: ParsedExpression, chances: dict[str, Tensor], boxes: Tensor) -> Tensor:
        out = chances[parsed.head]
        if parsed.relation:
            out = related(out, chances[parsed.anchor], relation_matrix(boxes, parsed.relation))
        for name in parsed.superlatives:
            out = extreme(out, relation_matrix(boxes, name))
        return out

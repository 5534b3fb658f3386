"""Zero-shot grounding: candidate boxes ranked by masked cosine, with optional spatial reasoning.

The reasoning is ReCLIP's (arXiv 2204.05991, section 3.2): soft products of distributions over boxes; the only hard step
is the final argmax. An expression is scored as a whole, under its own mask; as a tree of entities, each text under its
own mask; or both, multiplied, which is ReCLIP's score.

Shape letters: R boxes, E expressions, D joint embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import nms

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.presence import log_presence
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank
from smartclip_det.core.words import READINGS, VIEWS
from smartclip_det.models.grounding.parsing import Entity, parse_expression
from smartclip_det.models.regions import RegionEncoder

#: ``[R, D]`` region vectors by view, for each encoder.
Regions = Sequence[Mapping[str, Tensor]]


def relation_matrix(boxes: Tensor, relation: str) -> Tensor:
    """``[R, R]`` 1 if box i has the relation to box j (``within``: fraction of i inside j); 0 on the diagonal.

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
        value, sign = {
            "left": (x, -1),
            "right": (x, 1),
            "above": (y, -1),
            "below": (y, 1),
            "bigger": (area, 1),
            "smaller": (area, -1),
        }[relation]
        out = (sign * (value[:, None] - value[None, :]) > 0).to(boxes.dtype)
    return out.fill_diagonal_(0)


def between_tensor(boxes: Tensor) -> Tensor:
    """``[R, R, R]`` 1 if the centre of box i is in the bounding box of the centres of boxes j and k.

    0 if any two of the three are the same box. Bounding boxes of zero width or height count.
    """
    centres = torch.stack([boxes[:, 0::2].mean(dim=1), boxes[:, 1::2].mean(dim=1)], dim=1)
    low = torch.minimum(centres[:, None], centres[None, :])
    high = torch.maximum(centres[:, None], centres[None, :])
    inside = ((centres[:, None, None] >= low) & (centres[:, None, None] <= high)).all(dim=-1)
    count = torch.arange(len(boxes))
    distinct = count[:, None] != count[None, :]
    return (inside & distinct[:, :, None] & distinct[:, None, :] & distinct[None, :, :]).to(boxes.dtype)


def related(target: Tensor, anchor: Tensor, relation: Tensor) -> Tensor:
    """``[R]`` target distribution times the probability of its relation to the anchor; unchanged if all zero."""
    return _normalised(target * (relation @ anchor), target)


def extreme(target: Tensor, relation: Tensor) -> Tensor:
    """``[R]`` target distribution times the probability of its relation to another candidate, for a superlative."""
    return _normalised(target * (relation @ target), target)


def with_detector(scores: Tensor, detector: Tensor, weight: float) -> Tensor:
    """``[E, R]`` distributions times detector scores ``[E, R]`` to the power of ``weight``, normalised."""
    joined = scores * detector.clamp(min=1e-6) ** weight
    return joined / joined.sum(dim=1, keepdim=True).clamp(min=1e-30)


def _normalised(values: Tensor, fallback: Tensor) -> Tensor:
    total = values.sum()
    return values / total if total > 0 else fallback


def _banks(bank: TextBank | Sequence[TextBank], encoders: Sequence[RegionEncoder]) -> list[TextBank]:
    """One bank per encoder, all with the same names."""
    banks = [bank] if isinstance(bank, TextBank) else list(bank)
    if len(banks) != len(encoders) or any(b.names != banks[0].names for b in banks):
        raise UserError(f"{len(encoders)} encoders need as many banks with the same texts; given {len(banks)}.")
    return banks


class ZeroShotGrounder:
    """Scores candidate boxes of an image for expressions.

    Args:
        encoder: computes region vectors; the logits of several encoders are summed (an ensemble).
        views: views whose logits are summed.
        policy: provides ``mask_mode``, ``text_norm``, ``calibration`` and ``temperature``.
        reading: ``expression``: the whole text under its mask; ``chunks``: the texts of its entities, each under
            its own mask, combined by relations and superlatives; ``both``: the product of the two.
        reader: parses an expression into a tree, for ``chunks`` and ``both``.
        subtracted: texts whose mean score, each under its own mask, is subtracted from the scores of each region.
            This removes the bias of a region towards all texts (red circles, arXiv 2304.06712). Use a fixed bank of
            training captions, never of the evaluated split.
    """

    def __init__(
        self,
        encoder: RegionEncoder | Sequence[RegionEncoder],
        *,
        views: Sequence[str] = ("dense",),
        policy: ScoringPolicy | None = None,
        reading: str = "expression",
        reader: Callable[[str], Entity] = parse_expression,
        subtracted: TextBank | Sequence[TextBank] | None = None,
    ) -> None:
        if not views:
            raise UserError(f"Grounding needs at least one view of {', '.join(VIEWS)}.")
        self.views = [check_choice("view", v, VIEWS) for v in views]
        self.encoders = [encoder] if isinstance(encoder, RegionEncoder) else list(encoder)
        self.policy = policy or ScoringPolicy()
        self.reading, self.reader = check_choice("reading", reading, READINGS), reader
        self.subtracted = None if subtracted is None else _banks(subtracted, self.encoders)
        self._trees: dict[str, Entity] = {}

    def tree(self, expression: str) -> Entity:
        """Entity tree of an expression; cached."""
        if expression not in self._trees:
            self._trees[expression] = self.reader(expression)
        return self._trees[expression]

    def texts(self, expression: str) -> list[str]:
        """Texts that the bank must contain for an expression."""
        if not expression.strip():
            raise UserError("The expression is empty.")
        whole = [expression] if self.reading != "chunks" else []
        chunks = self.tree(expression).texts() if self.reading != "expression" else []
        return list(dict.fromkeys([*whole, *chunks]))

    def region_vectors(
        self, image: Image.Image, boxes: Sequence[Sequence[float]], masks: np.ndarray | None = None
    ) -> list[dict[str, Tensor]]:
        """``[R, D]`` for each encoder and view; independent of the texts.

        Args:
            image: RGB image.
            boxes: R xyxy boxes.
            masks: ``[R, H, W]`` bool for the ``mask`` view.
        """
        return [
            {v: e.vectors(image, boxes, v, masks=masks if v == "mask" else None) for v in self.views}
            for e in self.encoders
        ]

    def cosines(self, vectors: Regions, bank: TextBank | Sequence[TextBank]) -> Tensor:
        """``[R, K]`` mean over encoders and views of the cosine with each text, minus that of the subtracted bank.

        Args:
            vectors: from :meth:`region_vectors`.
            bank: bank of the encoder, or one per encoder.
        """
        scores = []
        for n, (views, own) in enumerate(zip(vectors, _banks(bank, self.encoders), strict=True)):
            for v in views.values():
                score = own.cosine(v, self.policy)
                if self.subtracted is not None:
                    score = score - self.subtracted[n].cosine(v, self.policy).mean(dim=1, keepdim=True)
                scores.append(score)
        return torch.stack(scores).mean(dim=0)

    def score(
        self,
        vectors: Regions,
        boxes: Sequence[Sequence[float]],
        expressions: Sequence[str],
        bank: TextBank | Sequence[TextBank],
    ) -> Tensor:
        """``[E, R]`` distributions over the boxes.

        Args:
            vectors: from :meth:`region_vectors`.
            boxes: R xyxy boxes.
            expressions: E expressions.
            bank: bank with :meth:`texts` of each expression, or one per encoder.
        """
        logits = self._logits(self.cosines(vectors, bank) * self._scale, expressions, bank)
        chances = {t: v.softmax(dim=0) for t, v in logits.items()}
        if self.reading == "expression":
            return torch.stack([chances[e] for e in expressions])
        corners = torch.as_tensor(boxes, dtype=torch.float32).view(-1, 4)
        reasoned = [reason(self.tree(e), chances, corners) for e in expressions]
        if self.reading == "both":
            reasoned = [_normalised(chances[e] * p, p) for e, p in zip(expressions, reasoned, strict=True)]
        return torch.stack(reasoned)

    def evidence(
        self,
        vectors: Regions,
        boxes: Sequence[Sequence[float]],
        expressions: Sequence[str],
        bank: TextBank | Sequence[TextBank],
        margin: bool = False,
        pictures: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """``[E, R]`` absolute score of each box for each expression.

        Scores are comparable across images, so a threshold can return no box or several. The score is the mean over
        views of the cosine with the expression, with its head, or with both. With a tree, it is lowered by how much a
        box loses to others under relations and superlatives.

        With presence, the log presence is added in units of the logit scale, which corresponds to a product of
        probabilities. An expression is at most as present as the least present of its texts. The order of boxes does
        not change, so :meth:`score` ignores presence.

        Arguments as in :meth:`score`, and:
            margin: subtract the cosine with the bank's background text.
            pictures: ``[P, D]`` vectors of the image for each encoder, for presence; see :meth:`picture_vectors`.
        """
        scores = self._evidence(vectors, boxes, expressions, bank, margin)
        if not self.policy.presence:
            return scores
        return scores + self._log_presence(pictures, expressions, bank).unsqueeze(1) / self._scale

    def picture_vectors(self, image: Image.Image) -> list[Tensor] | None:
        """``[P, D]`` vectors of an image for each encoder; None if the policy does not use presence."""
        source = self.policy.presence_source
        return [e.picture(image, source) for e in self.encoders] if self.policy.presence else None

    def _log_presence(
        self, pictures: Sequence[Tensor] | None, expressions: Sequence[str], bank: TextBank | Sequence[TextBank]
    ) -> Tensor:
        """``[E]`` log presence of each expression's least present text, mean over encoders."""
        if pictures is None or len(pictures) != len(self.encoders):
            raise UserError(f"presence={self.policy.presence} needs image-level vectors from each encoder.")
        banks = _banks(bank, self.encoders)
        presence = torch.stack([log_presence(p, b, self.policy) for p, b in zip(pictures, banks, strict=True)])
        index = {n: k for k, n in enumerate(banks[0].names)}
        mean = presence.mean(dim=0)
        return torch.stack([mean[[index[t] for t in self.texts(e)]].min() for e in expressions])

    def _evidence(
        self,
        vectors: Regions,
        boxes: Sequence[Sequence[float]],
        expressions: Sequence[str],
        bank: TextBank | Sequence[TextBank],
        margin: bool,
    ) -> Tensor:
        cosines = self._logits(self.cosines(vectors, bank), expressions, bank)
        if margin:
            background = self._background(vectors, bank)
            cosines = {t: v - background for t, v in cosines.items()}
        if self.reading == "expression":
            return torch.stack([cosines[e] for e in expressions])
        chances = {t: (v * self._scale).softmax(dim=0) for t, v in cosines.items()}
        corners = torch.as_tensor(boxes, dtype=torch.float32).view(-1, 4)
        rows = []
        for e in expressions:
            head = self.tree(e).text
            base = cosines[head] if self.reading == "chunks" else (cosines[head] + cosines[e]) / 2
            reasoned = reason(self.tree(e), chances, corners).clamp(min=1e-6).log()
            rows.append(base + (reasoned - chances[head].clamp(min=1e-12).log()).clamp(max=0) / self._scale)
        return torch.stack(rows)

    def _background(self, vectors: Regions, bank: TextBank | Sequence[TextBank]) -> Tensor:
        """``[R]`` mean over encoders and views of the cosine with the background text, under its own mask."""
        grounds = [b.background for b in _banks(bank, self.encoders)]
        if any(g is None for g in grounds):
            raise UserError("margin=True needs banks with a background text, as made by build_bank.")
        return self.cosines(vectors, [g for g in grounds if g is not None])[:, 0]

    @property
    def _scale(self) -> float:
        """Scale of the mean cosine: ReCLIP sums logits over encoders and views."""
        return self.policy.temperature * len(self.encoders) * len(self.views)

    def _logits(
        self, scores: Tensor, expressions: Sequence[str], bank: TextBank | Sequence[TextBank]
    ) -> dict[str, Tensor]:
        """``[R]`` scores of each text that the expressions need."""
        index = {n: k for k, n in enumerate(_banks(bank, self.encoders)[0].names)}
        needed = list(dict.fromkeys(t for e in expressions for t in self.texts(e)))
        missing = [t for t in needed if t not in index]
        if missing:
            raise UserError(f"The bank lacks {len(missing)} of the expressions' texts, e.g. {missing[0]!r}.")
        return {t: scores[:, index[t]] for t in needed}


def reason(entity: Entity, chances: Mapping[str, Tensor], boxes: Tensor) -> Tensor:
    """``[R]`` distribution of an entity: that of its text, times its relations and superlatives.

    Args:
        entity: root of a tree.
        chances: ``[R]`` distribution of each text of the tree.
        boxes: ``[R, 4]`` xyxy.
    """
    out = chances[entity.text]
    for name, anchors in entity.relations:
        others = [reason(a, chances, boxes) for a in anchors]
        if name == "between":
            probability = torch.einsum("ijk,j,k->i", between_tensor(boxes), others[0], others[1])
            out = _normalised(out * probability, out)
        else:
            out = related(out, others[0], relation_matrix(boxes, name))
    for name in entity.superlatives:
        out = extreme(out, relation_matrix(boxes, name))
    return out


def rank_by_tree(
    tree: Entity,
    scores: Mapping[str, Tensor],
    boxes: Tensor,
    *,
    whole: str | None = None,
    iou_threshold: float = 0.5,
    top_k: int = 1,
    threshold: float = 0.0,
    candidates: int = 50,
) -> tuple[Tensor, Tensor]:
    """Rank the boxes of an expression by absolute scores.

    A box gets the score of the tree's root, lowered by what it loses in the reasoned distribution. So a threshold can
    reject all boxes, and an expression without relations or superlatives is ranked by its own score.

    Args:
        tree: entities of the expression.
        scores: ``[R]`` in [0, 1], for each text of the tree.
        boxes: ``[R, 4]`` xyxy.
        whole: text whose scores are combined with the root's by their geometric mean.
        iou_threshold: IoU above which the lower-scored box is suppressed.
        top_k: maximum number of boxes.
        threshold: minimum score.
        candidates: number of best boxes of each text to consider.

    Returns:
        ``[N]`` rows and ``[N]`` scores, best first.
    """
    rows = torch.cat([_best_rows(boxes, s, iou_threshold, candidates) for s in scores.values()]).unique()
    candidate_scores = {t: s[rows] for t, s in scores.items()}
    values = candidate_scores[tree.text]
    if whole is not None:
        values = (values * candidate_scores[whole]).sqrt()
    if tree.relations or tree.superlatives:
        chances = {t: s.clamp(1e-6, 1 - 1e-6).logit().softmax(dim=0) for t, s in candidate_scores.items()}
        reasoned = reason(tree, chances, boxes[rows].cpu())
        values = values * (reasoned / chances[tree.text].clamp(min=1e-12)).clamp(max=1)
    best = _best_rows(boxes[rows], values, iou_threshold, top_k)
    best = best[values[best] >= threshold]
    return rows[best], values[best]


def _best_rows(boxes: Tensor, scores: Tensor, iou_threshold: float, count: int) -> Tensor:
    """Rows of the best boxes after NMS, best first; ties in row order."""
    order = scores.argsort(descending=True, stable=True)
    return order[
        nms(boxes[order].double(), -torch.arange(len(order), device=boxes.device).double(), iou_threshold)[:count]
    ]

"""Expressions with no, one or many targets: GREC, phrase recall, and referring segmentation.

Metrics are computed over the whole set, so batches and order do not matter. Boxes are xyxy pixels.

Shape letters: N sentences, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.rules import BOX_RULES, GREC_OVERLAP, GREC_SCORE, OVERLAPS
from smartclip_det.formats.expressions.predictions import check_known
from smartclip_det.formats.expressions.record import Expression, GroundedBoxes
from smartclip_det.formats.segmentations import whole_mask
from smartclip_det.metrics.referring import box_overlap

Box = Sequence[float]
PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)


def greedy_matches(found: Sequence[Box], truth: Sequence[Box], threshold: float, overlap: str) -> int:
    """Number of pairs in a greedy one-to-one matching by descending overlap, down to ``threshold``."""
    table = np.array([[box_overlap(f, t, overlap) for t in truth] for f in found], dtype=float)
    matched = 0
    while table.size and table.max() >= threshold:
        row, column = np.unravel_index(int(table.argmax()), table.shape)
        table = np.delete(np.delete(table, row, axis=0), column, axis=1)
        matched += 1
    return matched


def _of_sentence(
    e: Expression, found: GroundedBoxes | None, score: float, threshold: float, overlap: str
) -> tuple[float, int]:
    kept = [] if found is None else [b for b, s in zip(found.boxes, found.scores, strict=True) if s >= score]
    if not e.boxes:
        return float(not kept), len(kept)
    hits = greedy_matches(kept, e.boxes, threshold, overlap)
    return 2 * hits / (len(kept) + len(e.boxes)), len(kept)


def _mean(values: Any) -> float:
    # fsum: the result does not depend on the order of sentences.
    return math.fsum(values) / len(values) if len(values) else -1.0


def grec_metrics(
    truth: Sequence[Expression],
    predictions: Mapping[int | str, GroundedBoxes],
    *,
    score: float = GREC_SCORE,
    threshold: float = 0.5,
    overlap: str = GREC_OVERLAP,
) -> tuple[dict[str, float], dict[str, int]]:
    """GREC (gRefCOCO, arXiv 2308.16182): fraction of sentences answered exactly.

    Args:
        truth: sentences with no box, one or several.
        predictions: boxes and scores by sentence; a sentence that is not listed has no predictions.
        score: boxes with lower scores are dropped.
        threshold: minimum overlap of a match.
        overlap: ``giou`` (the released evaluator) or ``iou``.

    Returns:
        ``f1`` (fraction of sentences with F1 = 1), ``f1_mean`` (mean F1), ``n_acc`` (no-target sentences without a
        box), ``t_acc`` (target sentences with one); -1 if undefined. And counts.
    """
    check_choice("overlap", overlap, OVERLAPS)
    check_known(truth, predictions)
    rows = [(bool(e.boxes), *_of_sentence(e, predictions.get(e.id), score, threshold, overlap)) for e in truth]
    f1 = np.array([f for _, f, _ in rows])
    none = [kept == 0 for target, _, kept in rows if not target]
    some = [kept > 0 for target, _, kept in rows if target]
    metrics = {"f1": _mean(f1 >= 1), "f1_mean": _mean(f1), "n_acc": _mean(none), "t_acc": _mean(some)}
    counts = {
        "sentences": len(rows),
        "no_target": len(none),
        "many_targets": sum(len(e.boxes) > 1 for e in truth),
        "missing": sum(e.id not in predictions for e in truth),
    }
    return metrics, counts


def calibrate_threshold(
    truth: Sequence[Expression],
    predictions: Mapping[int | str, GroundedBoxes],
    *,
    threshold: float = 0.5,
    overlap: str = GREC_OVERLAP,
    measure: str = "f1",
) -> tuple[float, dict[str, float]]:
    """Find the score threshold with the best GREC metric; choose it on train or val, and use it on test.

    The metric changes only at scores, so the midpoints between neighbouring scores are the candidates; of many scores,
    200 quantiles.

    Args:
        truth: sentences.
        predictions: by sentence.
        threshold: minimum overlap of a match.
        overlap: ``giou`` or ``iou``.
        measure: ``f1`` (fraction of exact answers) or ``f1_mean``.

    Returns:
        The threshold and the metrics at it.
    """
    check_choice("measure", measure, ("f1", "f1_mean"))
    scores = np.unique([s for p in predictions.values() for s in p.scores])
    if not len(scores):
        raise UserError("There is no predicted box to calibrate on.")
    middles = np.concatenate([[scores[0] - 1e-6], (scores[1:] + scores[:-1]) / 2, [scores[-1] + 1e-6]])
    if len(middles) > 200:
        middles = np.quantile(middles, np.linspace(0, 1, 200))
    found = [
        (grec_metrics(truth, predictions, score=float(t), threshold=threshold, overlap=overlap)[0], float(t))
        for t in middles
    ]
    metrics, best = max(found, key=lambda row: row[0][measure])
    return best, metrics


def phrase_recall(
    truth: Sequence[Expression],
    predictions: Mapping[int | str, GroundedBoxes],
    *,
    boxes: str = BOX_RULES[0],
    threshold: float = 0.5,
    tops: Sequence[int] = (1, 5, 10),
) -> tuple[dict[str, float], dict[str, int]]:
    """Flickr30k Entities: fraction of phrases hit by one of the top k boxes.

    Args:
        truth: phrases with their boxes; phrases without a box are skipped and counted.
        predictions: by phrase.
        boxes: ``any``: a hit on any box of the phrase counts; ``merged``: the box around all of them must be hit.
            Published numbers differ by this rule.
        threshold: minimum IoU of a hit.
        tops: values of k.
    """
    check_choice("boxes", boxes, BOX_RULES)
    check_known(truth, predictions)
    asked = [e for e in truth if e.boxes]
    if not asked:
        raise UserError("No phrase has a box.")
    hits: list[int] = []
    for e in asked:
        targets: list[Box] = list(e.boxes)
        if boxes == "merged":
            corners = np.array(e.boxes)
            targets = [[*corners[:, :2].min(axis=0), *corners[:, 2:].max(axis=0)]]
        found = predictions.get(e.id)
        places = [
            n
            for n, b in enumerate(found.boxes if found else ())
            if any(box_overlap(b, t) >= threshold for t in targets)
        ]
        hits.append(places[0] if places else 10**9)
    counts = {
        "phrases": len(asked),
        "without_box": len(truth) - len(asked),
        "missing": sum(e.id not in predictions for e in asked),
    }
    return {f"recall_{k}": float(np.mean(np.array(hits) < k)) for k in tops}, counts


@dataclass(frozen=True)
class MaskPair:
    """Pixel counts of one sentence.

    Attributes:
        intersection: pixels in both masks.
        union: pixels in either.
        target: whether the sentence has a target.
        predicted: whether anything was predicted.
    """

    intersection: int
    union: int
    target: bool
    predicted: bool

    @staticmethod
    def of(truth: Sequence[Any], found: Any, size: tuple[int, int], sentence: Any = None) -> MaskPair:
        """Build from COCO RLE or polygons of the targets and of the prediction (None or empty for no prediction).

        Args:
            truth: segmentations of the targets; empty for a sentence without one.
            found: predicted segmentation.
            size: height and width.
            sentence: sentence id, for messages.

        Raises:
            UserError: for an invalid segmentation; the message names the sentence.
        """
        a = whole_mask(truth, size, where=f"Target of sentence {sentence!r}")
        b = whole_mask([found] if found else [], size, where=f"Prediction for sentence {sentence!r}")
        return MaskPair(int((a & b).sum()), int((a | b).sum()), bool(truth), bool(b.any()))

    @property
    def iou(self) -> float:
        """Intersection over union; 1 if both masks are empty."""
        return self.intersection / self.union if self.union else 1.0


def ris_metrics(pairs: Sequence[MaskPair]) -> dict[str, float]:
    """Referring segmentation: ``oiou`` (all intersections over all unions), ``miou``, ``p50`` ... ``p90``."""
    if not pairs:
        return dict.fromkeys(("oiou", "miou", *(f"p{round(100 * t)}" for t in PRECISIONS)), -1.0)
    values = np.array([p.iou for p in pairs])
    union = sum(p.union for p in pairs)
    return {
        "oiou": sum(p.intersection for p in pairs) / union if union else 1.0,
        "miou": float(values.mean()),
        **{f"p{round(100 * t)}": float(np.mean(values >= t)) for t in PRECISIONS},
    }


def gres_metrics(pairs: Sequence[MaskPair]) -> dict[str, float]:
    """Generalized referring segmentation (ReLA, arXiv 2306.00968).

    ``giou`` is the mean IoU over sentences, not the generalized IoU of boxes: a sentence without a target scores 1
    if nothing is predicted and 0 otherwise. ``ciou`` is the sum of intersections over the sum of unions; a missed
    target adds its union, and a prediction without a target adds its pixels. ``p70``, ``p80``, ``p90`` are over target
    sentences; ``n_acc`` and ``t_acc`` as in GREC.
    """
    if not pairs:
        return dict.fromkeys(("giou", "ciou", "n_acc", "t_acc", "p70", "p80", "p90"), -1.0)
    union = sum(p.union for p in pairs)
    targets, none = [p for p in pairs if p.target], [p for p in pairs if not p.target]
    scores = [p.iou if p.target else float(not p.predicted) for p in pairs]
    out = {
        "giou": float(np.mean(scores)),
        "ciou": sum(p.intersection for p in pairs) / union if union else 1.0,
        "n_acc": _mean([not p.predicted for p in none]),
        "t_acc": _mean([p.predicted for p in targets]),
    }
    return out | {f"p{round(100 * t)}": _mean([p.iou >= t for p in targets]) for t in (0.7, 0.8, 0.9)}

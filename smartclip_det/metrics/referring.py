"""Referring-expression comprehension: accuracy per sentence.

Shape letters: N sentences. Boxes are xyxy pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.rules import OVERLAPS
from smartclip_det.formats.expressions.predictions import check_known
from smartclip_det.formats.expressions.record import Expression, GroundedBoxes

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


@dataclass
class ReferringScores:
    """IoU of the best predicted box with the target, per sentence.

    Attributes:
        overlap: ``[N]``; 0 where nothing was predicted (-1 for GIoU).
        images: ``[N]`` image of each sentence, for resampling.
        counts: sentences, missing (no prediction for the sentence), empty (a prediction without boxes); both are wrong.
    """

    overlap: np.ndarray
    images: list[Any]
    counts: dict[str, int]


def box_overlap(a: Sequence[float], b: Sequence[float], kind: str = OVERLAPS[0]) -> float:
    """IoU or GIoU of two xyxy boxes in continuous coordinates; two boxes without area have IoU 0."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inner = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner
    iou = inner / union if union > 0 else 0.0
    if kind == "iou":
        return iou
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return iou - (hull - union) / hull if hull > 0 else iou


def score_referring(
    truth: Sequence[Expression], predictions: Mapping[int | str, GroundedBoxes], overlap: str = OVERLAPS[0]
) -> ReferringScores:
    """Compare the best-scored box of each sentence with its target.

    Raises:
        UserError: for predictions of unknown sentences, and for sentences without exactly one target (use the grefcoco
            protocol).
    """
    check_choice("overlap", overlap, OVERLAPS)
    odd = [e.id for e in truth if len(e.boxes) != 1]
    if odd:
        raise UserError(
            f"{len(odd)} sentences have no target or several (e.g. id {odd[0]!r}); the refcoco protocol needs exactly "
            "one box per sentence. Use the grefcoco protocol."
        )
    check_known(truth, predictions)
    worst = 0.0 if overlap == "iou" else -1.0
    values, counts = [], {"sentences": len(truth), "missing": 0, "empty": 0}
    for e in truth:
        found = predictions.get(e.id)
        counts["missing"] += found is None
        counts["empty"] += found is not None and not found.boxes
        values.append(box_overlap(found.boxes[0], e.boxes[0], overlap) if found and found.boxes else worst)
    return ReferringScores(np.array(values), [e.image_id for e in truth], counts)


def referring_metrics(overlap: np.ndarray, *, strict: bool = False) -> dict[str, float]:
    """``acc50``, ``acc75``, ``acc90``, ``acc_mean`` (over 0.5:0.05:0.95) and ``miou`` of ``[N]`` overlaps.

    Args:
        overlap: one value per sentence.
        strict: hits need overlap > threshold instead of >=.
    """
    if not len(overlap):
        return dict.fromkeys(("acc50", "acc75", "acc90", "acc_mean", "miou"), -1.0)

    def accuracy(threshold: float) -> float:
        return float(np.mean(overlap > threshold if strict else overlap >= threshold))

    return {
        "acc50": accuracy(0.5),
        "acc75": accuracy(0.75),
        "acc90": accuracy(0.9),
        "acc_mean": float(np.mean([accuracy(t) for t in THRESHOLDS])),
        "miou": float(np.mean(overlap)),
    }


def single_targets(expressions: Sequence[Expression]) -> tuple[list[Expression], int]:
    """The sentences with exactly one target, and the number of others.

    Raises:
        UserError: if there are none.
    """
    kept = [e for e in expressions if len(e.boxes) == 1]
    if not kept:
        raise UserError("No sentence has exactly one target.")
    return kept, len(expressions) - len(kept)


def chance_accuracy(expressions: Sequence[Expression], boxes: Mapping[int | str, Sequence[Sequence[float]]]) -> float:
    """Expected accuracy at IoU 0.5 of a random candidate per sentence."""
    values = []
    for e in expressions:
        mine = boxes.get(e.id, ())
        hits = sum(box_overlap(b, e.boxes[0]) >= 0.5 for b in mine)
        values.append(hits / len(mine) if mine else 0.0)
    return float(np.mean(values))


def best_possible(expressions: Sequence[Expression], boxes: Mapping[int | str, Sequence[Sequence[float]]]) -> float:
    """Accuracy at IoU 0.5 of an oracle that picks the best candidate: the upper bound set by the proposals."""
    hits = [any(box_overlap(b, e.boxes[0]) >= 0.5 for b in boxes.get(e.id, ())) for e in expressions]
    return float(np.mean(hits))

"""Per-class score thresholds from few labelled images, with cross-validated precision and recall.

Shape letters: N detections of a class, by descending score; I images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smartclip_det.metrics.bootstrap import ClassMatches

#: Minimum number of labelled boxes for a threshold of its own; other classes share one.
OWN_FROM = 3
#: Cross-validation folds; leave-one-out with fewer images.
FOLDS = 20
#: Decimals of a threshold.
DIGITS = 4


@dataclass(frozen=True)
class ClassThreshold:
    """Threshold of a class, and its result on held-out images.

    Attributes:
        name: class name.
        threshold: minimum score.
        own: whether the class had enough boxes for a threshold of its own.
        boxes: labelled boxes.
        hits: held-out detections above the threshold that match a box.
        misses: held-out detections above the threshold that match none.
    """

    name: str
    threshold: float
    own: bool
    boxes: int
    hits: int
    misses: int

    @property
    def precision(self) -> tuple[float, float, float] | None:
        """Precision with the bounds of its 95 % interval; None without detections."""
        return with_interval(self.hits, self.hits + self.misses)

    @property
    def recall(self) -> tuple[float, float, float] | None:
        """Recall with the bounds of its 95 % interval; None without boxes."""
        return with_interval(self.hits, self.boxes)


def with_interval(count: int, total: int) -> tuple[float, float, float] | None:
    """A proportion with the bounds of Wilson's 95 % interval (scipy), assuming independent boxes."""
    from scipy.stats import binomtest

    if not total:
        return None
    ends = binomtest(count, total).proportion_ci(0.95, method="wilson")
    return count / total, float(ends.low), float(ends.high)


def best_threshold(
    scores: np.ndarray, hits: np.ndarray, total: int, least_precision: float | None = None
) -> float | None:
    """The threshold with the best F1, or with the most detections at a minimum precision; midway between two scores.

    Args:
        scores: ``[N]``, descending.
        hits: ``[N]`` detections that match a labelled box.
        total: number of labelled boxes.
        least_precision: minimum precision; None for the best F1.

    Returns:
        None if no detection is correct, or if the precision is not reached.
    """
    if not total or not hits.any():
        return None
    count, right = np.arange(1, len(scores) + 1), np.cumsum(hits)
    # Equal scores pass a threshold together.
    ends = np.append(scores[1:] != scores[:-1], True)
    if least_precision is None:
        value = np.where(ends, 2 * right / (count + total), -1.0)
        last = int(np.argmax(value))
    else:
        good = np.flatnonzero(ends & (right / count >= least_precision - 1e-12))
        if not len(good):
            return None
        last = int(good[-1])
    below = scores[last + 1] if last + 1 < len(scores) else scores[last]
    return math.floor(10**DIGITS * (scores[last] + below) / 2) / 10**DIGITS


def choose_thresholds(
    classes: Sequence[ClassMatches], least_precision: float | None = None, images: np.ndarray | None = None
) -> tuple[list[float | None], float | None]:
    """Thresholds of the classes with enough boxes, and one for all classes together.

    Args:
        classes: detections matched at an overlap of 0.5 (the first of the matches' thresholds).
        least_precision: see :func:`best_threshold`.
        images: ``[I]`` True for the images to use; None for all.
    """
    used = [_used(c, images) for c in classes]
    own = [best_threshold(s, h, t, least_precision) if t >= OWN_FROM else None for s, h, t in used]
    scores = np.concatenate([s for s, _, _ in used]) if used else np.zeros(0)
    hits = np.concatenate([h for _, h, _ in used]) if used else np.zeros(0, bool)
    order = np.argsort(-scores, kind="stable")
    return own, best_threshold(scores[order], hits[order], sum(t for _, _, t in used), least_precision)


def _used(matches: ClassMatches, images: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores, hits and number of boxes on the selected images; detections matched to crowds are ignored."""
    mask = matches.counted[0] if images is None else matches.counted[0] & images[matches.images]
    truths = matches.truths if images is None else matches.truths[images]
    return matches.scores[mask], matches.hits[0][mask], int(truths.sum())


def calibrate_classes(
    classes: Sequence[ClassMatches], fallback: float, least_precision: float | None = None
) -> tuple[list[ClassThreshold], float]:
    """Choose thresholds on all images and estimate their precision and recall by cross-validation.

    Args:
        classes: see :func:`choose_thresholds`.
        fallback: threshold if no detection is correct.
        least_precision: see :func:`best_threshold`.

    Returns:
        One entry per class, and the threshold of classes without their own.
    """
    count = len(classes[0].truths) if classes else 0
    hits, misses = np.zeros(len(classes), int), np.zeros(len(classes), int)
    folds = np.arange(count) % min(FOLDS, max(1, count))
    for fold in np.unique(folds):
        own, shared = choose_thresholds(classes, least_precision, folds != fold)
        for k, matches in enumerate(classes):
            scores, right, _ = _used(matches, folds == fold)
            kept = scores >= _first(own[k], shared, fallback)
            hits[k] += int((right & kept).sum())
            misses[k] += int((~right & kept).sum())
    own, shared = choose_thresholds(classes, least_precision)
    rows = [
        ClassThreshold(
            c.name,
            _first(own[k], shared, fallback),
            own[k] is not None,
            int(c.truths.sum()),
            int(hits[k]),
            int(misses[k]),
        )
        for k, c in enumerate(classes)
    ]
    return rows, _first(shared, fallback)


def _first(*values: float | None) -> float:
    return next(v for v in values if v is not None)

"""Lowest scores by class from few labelled images, and what they give on images that they were not chosen on.

Shape letters: N detections of a class, best first; I images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smartclip_det.metrics.bootstrap import ClassMatches

#: Labelled boxes from which a class has a threshold of its own; others share one.
OWN_FROM = 3
#: Parts that images are held out in; fewer images are held out one by one.
FOLDS = 20
#: Digits of a threshold.
DIGITS = 4


@dataclass(frozen=True)
class ClassThreshold:
    """What was chosen for a class, and what it gives on held-out images.

    Attributes:
        name: of the class.
        threshold: lowest score.
        own: whether the class had boxes enough for one of its own.
        boxes: labelled boxes.
        hits: held-out detections above the threshold that match a box.
        misses: those that match none.
    """

    name: str
    threshold: float
    own: bool
    boxes: int
    hits: int
    misses: int

    @property
    def precision(self) -> tuple[float, float, float] | None:
        """Share of the detections that are right, with the ends of its 95 % interval; None without one."""
        return with_interval(self.hits, self.hits + self.misses)

    @property
    def recall(self) -> tuple[float, float, float] | None:
        """Share of the boxes that are found, with the ends of its 95 % interval; None without one."""
        return with_interval(self.hits, self.boxes)


def with_interval(count: int, total: int) -> tuple[float, float, float] | None:
    """A share with the ends of Wilson's 95 % interval (scipy); boxes are taken as independent."""
    from scipy.stats import binomtest

    if not total:
        return None
    ends = binomtest(count, total).proportion_ci(0.95, method="wilson")
    return count / total, float(ends.low), float(ends.high)


def best_threshold(
    scores: np.ndarray, hits: np.ndarray, total: int, least_precision: float | None = None
) -> float | None:
    """The lowest score with the best F1, or the most detections of a precision; between two detections, in the middle.

    Args:
        scores: ``[N]``, falling.
        hits: ``[N]`` which match a labelled box.
        total: labelled boxes.
        least_precision: precision that is asked for; None: the best F1.

    Returns:
        None where no detection is right, or none has the precision.
    """
    if not total or not hits.any():
        return None
    count, right = np.arange(1, len(scores) + 1), np.cumsum(hits)
    # Equal scores are kept together or not at all.
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
    """A threshold of each class that has boxes enough, and one of all classes together.

    Args:
        classes: detections matched at an overlap of 0.5 (the first of the matches' thresholds).
        least_precision: see :func:`best_threshold`.
        images: ``[I]`` True for those that are used; None: all.
    """
    used = [_used(c, images) for c in classes]
    own = [best_threshold(s, h, t, least_precision) if t >= OWN_FROM else None for s, h, t in used]
    scores = np.concatenate([s for s, _, _ in used]) if used else np.zeros(0)
    hits = np.concatenate([h for _, h, _ in used]) if used else np.zeros(0, bool)
    order = np.argsort(-scores, kind="stable")
    return own, best_threshold(scores[order], hits[order], sum(t for _, _, t in used), least_precision)


def _used(matches: ClassMatches, images: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores, hits and number of boxes on some of the images; what matched a crowd counts for nothing."""
    mask = matches.counted[0] if images is None else matches.counted[0] & images[matches.images]
    truths = matches.truths if images is None else matches.truths[images]
    return matches.scores[mask], matches.hits[0][mask], int(truths.sum())


def calibrate_classes(
    classes: Sequence[ClassMatches], fallback: float, least_precision: float | None = None
) -> tuple[list[ClassThreshold], float]:
    """Thresholds chosen on all images, with precision and recall on images held out of the choice.

    Args:
        classes: see :func:`choose_thresholds`.
        fallback: where no detection is right.
        least_precision: see :func:`best_threshold`.

    Returns:
        One for each class, and that of classes without their own.
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

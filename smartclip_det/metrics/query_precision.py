"""Average precision of pictures, query by query: captions and names of classes.

Shape letters: I images, C queries, K texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from smartclip_det.core.errors import UserError
from smartclip_det.metrics.bootstrap import Metric, paired_bootstrap


def average_precision(present: np.ndarray, scores: np.ndarray) -> float:
    """Area under precision by recall, without interpolation; equal scores are one threshold.

    Args:
        present: ``[I]`` bool.
        scores: ``[I]``.

    Returns:
        A value in (0, 1], or -1 where nothing is present.
    """
    total = int(present.sum())
    if not total:
        return -1.0
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(present[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    precision, recall = hits[last] / (last + 1), hits[last] / total
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def query_precisions(present: np.ndarray, scores: np.ndarray, left_out: np.ndarray | None = None) -> np.ndarray:
    """``[C]`` :func:`average_precision` of each query; NaN for queries that no image answers.

    Args:
        present: ``[I, C]`` bool.
        scores: ``[I, C]``: how well an image fits a query.
        left_out: ``[I, C]`` bool: images that do not count for a query.
    """
    kept = np.ones_like(present) if left_out is None else ~left_out
    found = [average_precision(present[k, c], scores[k, c]) for c, k in enumerate(kept.T)]
    return np.array([v if v >= 0 else np.nan for v in found])


def mean_known(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; -1 where there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else -1.0


def misbound(present: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """``[I, C]`` bool: images that show both words of a class, but on different objects only.

    Args:
        present: ``[I, C]`` bool.
        classes: C names of two words each, attribute and noun.

    Raises:
        UserError: for names that are not two words.
    """
    words = [c.split() for c in classes]
    odd = [c for c, w in zip(classes, words, strict=True) if len(w) != 2]
    if odd:
        raise UserError(f"Binding is of an attribute to a noun: every class must be two words; {odd[0]!r} is not.")
    both = np.ones_like(present)
    for place in (0, 1):
        own = np.array([w[place] for w in words])
        same = own[:, None] == own[None, :]
        both &= (present.astype(np.int64) @ same) > 0
    return both & ~present


def separation(present: np.ndarray, others: np.ndarray, scores: np.ndarray) -> float:
    """Share of comparisons, within queries, of an image where it is true and one of ``others`` that the true one wins.

    Args:
        present: ``[I, C]`` bool.
        others: ``[I, C]`` bool.
        scores: ``[I, C]``; equal ones are half won.

    Returns:
        The area under the ROC curve, of which each query has as much weight as comparisons; -1 where there are none.
    """
    won, count = 0.0, 0
    for true, other, s in zip(present.T, others.T, scores.T, strict=True):
        gap = s[true][:, None] - s[other][None, :]
        won, count = won + float((gap > 0).sum() + (gap == 0).sum() / 2), count + gap.size
    return won / count if count else -1.0


def best_recalls(texts: Sequence[str], owner: np.ndarray, cuts: Sequence[int]) -> dict[int, float]:
    """The highest recall of texts' own images that any order of the images reaches.

    The same text from several images finds the same order, and one image only is first in it.

    Args:
        texts: K texts.
        owner: ``[K]`` row of each text's image.
        cuts: places that count.
    """
    images_of: dict[str, dict[int, int]] = {}
    for text, image in zip(texts, owner.tolist(), strict=True):
        counts = images_of.setdefault(text, {})
        counts[image] = counts.get(image, 0) + 1
    ranked = [sorted(c.values(), reverse=True) for c in images_of.values()]
    return {k: sum(sum(counts[:k]) for counts in ranked) / len(texts) for k in cuts}


def reader_recalls(true_images: np.ndarray, cuts: Sequence[int]) -> dict[int, float]:
    """Recall, on average, of who knows what is true and nothing else.

    Args:
        true_images: ``[K]`` number of images that each text is true of.
        cuts: places that count.
    """
    return {k: float(np.minimum(1.0, k / true_images).mean()) for k in cuts}


def gains(found: Mapping[str, np.ndarray], over: Sequence[str], mode: str = "hard") -> dict[str, dict[str, float]]:
    """Mean precision by a mask mode minus that by others, with paired bootstrap intervals over queries.

    Args:
        found: ``[C]`` precisions by mask mode.
        over: modes that are subtracted.
        mode: the mode that they are subtracted from.

    Returns:
        By subtracted mode, the entries of :func:`paired_bootstrap`; nothing where no query is answered.
    """
    out = {}
    for other in over:
        if not {mode, other} <= found.keys():
            continue
        known = ~np.isnan(found[mode])
        if known.any():
            first, second = (_weighted_mean(found[m][known]) for m in (other, mode))
            out[other] = paired_bootstrap(first, second, int(known.sum()), progress=False)["map"]
    return out


def _weighted_mean(values: np.ndarray) -> Metric:
    return lambda weights: {"map": float(weights @ values / weights.sum())}

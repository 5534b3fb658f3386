"""Average precision of image retrieval by query: captions and class names.

Shape letters: I images, C queries, K texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from smartclip_det.core.errors import UserError
from smartclip_det.metrics.bootstrap import Metric, paired_bootstrap


def average_precision(present: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall curve, without interpolation; equal scores share a threshold.

    Args:
        present: ``[I]`` bool.
        scores: ``[I]``.

    Returns:
        A value in (0, 1], or -1 if nothing is present.
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
    """``[C]`` :func:`average_precision` of each query; NaN for queries without a relevant image.

    Args:
        present: ``[I, C]`` bool.
        scores: ``[I, C]``: similarity of images and queries.
        left_out: ``[I, C]`` bool: images to ignore for a query.
    """
    kept = np.ones_like(present) if left_out is None else ~left_out
    found = [average_precision(present[k, c], scores[k, c]) for c, k in enumerate(kept.T)]
    return np.array([v if v >= 0 else np.nan for v in found])


def mean_known(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; -1 if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else -1.0


def misbound(present: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """``[I, C]`` bool: images that show both words of a class, but on different objects only.

    Args:
        present: ``[I, C]`` bool.
        classes: C two-word names, attribute and noun.

    Raises:
        UserError: for names that do not have two words.
    """
    words = [c.split() for c in classes]
    odd = [c for c, w in zip(classes, words, strict=True) if len(w) != 2]
    if odd:
        raise UserError(f"Binding needs two-word classes, an attribute and a noun; {odd[0]!r} has another form.")
    both = np.ones_like(present)
    for place in (0, 1):
        own = np.array([w[place] for w in words])
        same = own[:, None] == own[None, :]
        both &= (present.astype(np.int64) @ same) > 0
    return both & ~present


def separation(present: np.ndarray, others: np.ndarray, scores: np.ndarray) -> float:
    """Probability that, within a query, a matching image scores higher than one of ``others``.

    Args:
        present: ``[I, C]`` bool.
        others: ``[I, C]`` bool.
        scores: ``[I, C]``; ties count half.

    Returns:
        Area under the ROC curve, pooled over queries by their number of pairs; -1 if there are no pairs.
    """
    won, count = 0.0, 0
    for true, other, s in zip(present.T, others.T, scores.T, strict=True):
        gap = s[true][:, None] - s[other][None, :]
        won, count = won + float((gap > 0).sum() + (gap == 0).sum() / 2), count + gap.size
    return won / count if count else -1.0


def best_recalls(texts: Sequence[str], owner: np.ndarray, cuts: Sequence[int]) -> dict[int, float]:
    """Upper bound of recall over all possible rankings.

    Identical texts of several images get the same ranking, and only one image can be first in it.

    Args:
        texts: K texts.
        owner: ``[K]`` row of each text's image.
        cuts: cut-offs of recall.
    """
    images_of: dict[str, dict[int, int]] = {}
    for text, image in zip(texts, owner.tolist(), strict=True):
        counts = images_of.setdefault(text, {})
        counts[image] = counts.get(image, 0) + 1
    ranked = [sorted(c.values(), reverse=True) for c in images_of.values()]
    return {k: sum(sum(counts[:k]) for counts in ranked) / len(texts) for k in cuts}


def reader_recalls(true_images: np.ndarray, cuts: Sequence[int]) -> dict[int, float]:
    """Expected recall of an oracle that knows which images match a text, but not which one it was written for.

    Args:
        true_images: ``[K]`` number of images that match each text.
        cuts: cut-offs of recall.
    """
    return {k: float(np.minimum(1.0, k / true_images).mean()) for k in cuts}


def gains(found: Mapping[str, np.ndarray], over: Sequence[str], mode: str = "hard") -> dict[str, dict[str, float]]:
    """Mean precision with a mask mode minus that with others, with paired bootstrap intervals over queries.

    Args:
        found: ``[C]`` precisions by mask mode.
        over: modes to subtract.
        mode: the mode to subtract them from.

    Returns:
        By subtracted mode, the entries of :func:`paired_bootstrap`; empty if no query has a relevant image.
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

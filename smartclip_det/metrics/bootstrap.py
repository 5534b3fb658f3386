"""Paired bootstrap over images between two prediction files.

Both files are matched once; each resample draws images with replacement and weights every detection, ground-truth
box or sentence by how often its image was drawn. Weighting gives exactly the result of repeating images: within a
block of equal copies the precision envelope and the recall steps are the same.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartclip_det.core.rules import COCO_LIMITS, IOU_TYPES, LVIS_LIMIT
from smartclip_det.formats.annotations import GroundTruth, with_numbers
from smartclip_det.metrics.coco import build_evaluator
from smartclip_det.metrics.lvis import limit_detections, reference_evaluator
from smartclip_det.metrics.voc import average_precision, match_class

Metric = Callable[[np.ndarray], Mapping[str, float]]
#: Metric name to class names, and the index of one IoU threshold or None for the mean over all.
Groups = Mapping[str, tuple[Sequence[str], int | None]]
RECALL_POINTS = np.linspace(0.0, 1.0, 101)


@dataclass
class ClassMatches:
    """Detections of one class over all images, by descending score.

    Attributes:
        name: class name.
        images: ``[N]`` image indices.
        hits: ``[T, N]`` True for hits at each IoU threshold.
        counted: ``[T, N]`` False for detections that matched a crowd region.
        truths: ``[I]`` counted ground-truth boxes per image.
        scores: ``[N]``.
    """

    name: str
    images: np.ndarray
    hits: np.ndarray
    counted: np.ndarray
    truths: np.ndarray
    scores: np.ndarray

    def ap(self, weights: np.ndarray) -> np.ndarray:
        """``[T]`` COCO AP under ``[I]`` image weights; NaN without ground truth."""
        total = float((self.truths * weights).sum())
        if total == 0:
            return np.full(len(self.hits), np.nan)
        w = weights[self.images]
        out = np.zeros(len(self.hits))
        for t, (hits, counted) in enumerate(zip(self.hits, self.counted, strict=True)):
            used = counted & (w > 0)
            tp = (w * (hits & used))[used].cumsum()
            fp = (w * (~hits & used))[used].cumsum()
            if not len(tp):
                continue
            precision = np.maximum.accumulate((tp / (tp + fp + np.spacing(1)))[::-1])[::-1]
            index = np.searchsorted(tp / total, RECALL_POINTS, side="left")
            out[t] = precision[index[index < len(precision)]].sum() / len(RECALL_POINTS)
        return out


def coco_matches(
    truth: GroundTruth,
    results: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    *,
    iou_type: str = IOU_TYPES[0],
    max_dets: int = COCO_LIMITS[-1],
) -> list[ClassMatches]:
    """Match with pycocotools, per class (area: all)."""
    truth, results = with_numbers(truth, results)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = build_evaluator(truth, results, "reference", iou_type)
        ids = truth.category_ids(names)
        image_ids = sorted({i["id"] for i in truth.data["images"]})
        evaluator.params.catIds, evaluator.params.imgIds = ids, image_ids
        evaluator.params.maxDets = [max_dets]
        evaluator.params.areaRng = evaluator.params.areaRng[:1]
        evaluator.params.areaRngLbl = ["all"]
        evaluator.evaluate()
    thresholds = len(evaluator.params.iouThrs)
    order = {c: k for k, c in enumerate(sorted(ids))}
    out = []
    for category, name in zip(ids, names, strict=True):
        start = order[category] * len(image_ids)
        out.append(_collect(name, evaluator.evalImgs[start : start + len(image_ids)], thresholds))
    return out


def lvis_matches(
    truth: GroundTruth,
    results: Sequence[Mapping[str, Any]],
    *,
    iou_type: str = IOU_TYPES[0],
    max_dets: int = LVIS_LIMIT,
) -> list[ClassMatches]:
    """Match with lvis-api, per class in id order (area: all), after the limit per image."""
    truth, results = with_numbers(truth, results)
    evaluator = reference_evaluator(truth, limit_detections(results, max_dets), iou_type, only_all_areas=True)
    images, thresholds = len(evaluator.params.img_ids), len(evaluator.params.iou_thrs)
    # lvis-api spells pycocotools' field names in snake case.
    fields = {"dt_scores": "dtScores", "dt_matches": "dtMatches", "dt_ignore": "dtIgnore", "gt_ignore": "gtIgnore"}
    renamed = [e and {new: e[old] for old, new in fields.items()} for e in evaluator.eval_imgs]
    names = [truth.categories[c] for c in evaluator.params.cat_ids]
    return [_collect(n, renamed[k * images : (k + 1) * images], thresholds) for k, n in enumerate(names)]


def voc_metric(truth: GroundTruth, results: Sequence[Mapping[str, Any]], difficult: str) -> tuple[Metric, int]:
    """``mAP`` (all-point) and ``mAP_11`` of VOC as a function of image weights."""
    matches = [match_class(truth, results, c, 0.5, difficult) for c in truth.categories]

    def metric(weights: np.ndarray) -> dict[str, float]:
        out = {}
        for name, points in (("mAP", "all"), ("mAP_11", "11")):
            values = []
            for m in matches:
                w = weights[m.images]
                misses = w * (~m.hits & ~m.ignored)
                values.append(average_precision(w * m.hits, misses, float((m.truths * weights).sum()), points))
            out[name] = _nanmean(np.array(values))
        return out

    return metric, len(truth.data["images"])


def _collect(name: str, per_image: Sequence[dict[str, Any] | None], thresholds: int) -> ClassMatches:
    scores, images = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    hits, ignored = [np.zeros((thresholds, 0), bool)], [np.zeros((thresholds, 0), bool)]
    truths = np.zeros(len(per_image))
    for i, e in enumerate(per_image):
        if e is None:
            continue
        scores.append(np.asarray(e["dtScores"], dtype=float))
        images.append(np.full(len(e["dtScores"]), i, dtype=np.int64))
        hits.append(np.asarray(e["dtMatches"]) > 0)
        ignored.append(np.asarray(e["dtIgnore"]).astype(bool))
        truths[i] = np.count_nonzero(np.asarray(e["gtIgnore"]) == 0)
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    found = np.concatenate(hits, axis=1)[:, order]
    skip = np.concatenate(ignored, axis=1)[:, order]
    ordered = np.concatenate(scores)[order]
    return ClassMatches(name, np.concatenate(images)[order], found & ~skip, ~skip, truths, ordered)


def detection_metric(matches: Sequence[ClassMatches], groups: Groups | None = None) -> tuple[Metric, int]:
    """Average precision as a function of image weights.

    Args:
        matches: one entry per class.
        groups: metrics to report; default ``mAP`` and ``mAP_50`` over all classes.
    """
    index = {m.name: k for k, m in enumerate(matches)}
    chosen: Groups = groups or {"mAP": (list(index), None), "mAP_50": (list(index), 0)}

    def metric(weights: np.ndarray) -> dict[str, float]:
        table = np.stack([m.ap(weights) for m in matches])
        parts = {k: table[[index[n] for n in names]] for k, (names, _) in chosen.items()}
        return {k: _nanmean(p if chosen[k][1] is None else p[:, chosen[k][1]]) for k, p in parts.items()}

    return metric, len(matches[0].truths)


def _nanmean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def referring_metric(overlap: np.ndarray, images: Sequence[Any], *, strict: bool = False) -> tuple[Metric, int]:
    """``acc50``, ``acc75``, ``acc90`` and ``miou`` as a function of image weights."""
    order = {image: i for i, image in enumerate(dict.fromkeys(images))}
    position = np.array([order[i] for i in images])

    def metric(weights: np.ndarray) -> dict[str, float]:
        w = weights[position]
        total = max(float(w.sum()), np.finfo(float).tiny)
        out = {}
        for t in (0.5, 0.75, 0.9):
            hits = overlap > t if strict else overlap >= t
            out[f"acc{int(t * 100)}"] = float((w * hits).sum() / total)
        return {**out, "miou": float((w * overlap).sum() / total)}

    return metric, len(order)


def paired_bootstrap(
    a: Metric, b: Metric, images: int, *, resamples: int = 1000, seed: int = 0, progress: bool = True
) -> dict[str, dict[str, float]]:
    """Compare two metrics on the same images.

    Args:
        a: metrics of the first file as a function of image weights.
        b: metrics of the second file.
        images: number of images.
        resamples: number of resamples.
        seed: random seed.
        progress: show a bar.

    Returns:
        For each metric: ``a``, ``b``, ``difference`` (b - a), ``low`` and ``high`` (95 % percentile interval of the
        difference), ``p`` (two-sided, with add-one correction), ``resamples`` used.
    """
    from tqdm import tqdm

    ones = np.ones(images)
    first, second = a(ones), b(ones)
    generator = np.random.default_rng(seed)
    draws: dict[str, list[float]] = {k: [] for k in first}
    for _ in tqdm(range(resamples), desc="bootstrap", unit="draw", disable=not progress):
        weights = np.bincount(generator.integers(0, images, images), minlength=images).astype(float)
        left, right = a(weights), b(weights)
        for k in draws:
            draws[k].append(right[k] - left[k])
    out = {}
    for k, values in draws.items():
        d = np.array([v for v in values if not np.isnan(v)])
        if not len(d):
            continue
        tail = min((d <= 0).sum(), (d >= 0).sum())
        out[k] = {
            "a": first[k],
            "b": second[k],
            "difference": second[k] - first[k],
            "low": float(np.quantile(d, 0.025)),
            "high": float(np.quantile(d, 0.975)),
            "p": float(min(1.0, 2 * (tail + 1) / (len(d) + 1))),
            "resamples": len(d),
        }
    return out

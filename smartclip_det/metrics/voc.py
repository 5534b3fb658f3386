"""PASCAL VOC average precision at one IoU threshold, all-point and 11-point.

IoU uses inclusive pixel coordinates (+1), as the VOC devkit does. A detection is a hit if the ground-truth box that it
overlaps most has IoU >= threshold and is not matched to a detection with a higher score. Objects marked difficult count
like others by default (as in common re-implementations) or are ignored (``ignore``, as in the devkit).

``fast`` is vectorised here; ``reference`` is MMDetection's ``eval_map`` (fp32 inside, agrees to 1e-6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartclip_det.core.errors import check_choice
from smartclip_det.core.rules import BACKENDS, DIFFICULT
from smartclip_det.formats.annotations import GroundTruth
from smartclip_det.utils.boxes import Box, to_xyxy


@dataclass
class VocMatches:
    """Detections of one class, by descending score.

    Attributes:
        scores: ``[N]``.
        images: ``[N]`` image indices.
        hits: ``[N]`` True for hits.
        ignored: ``[N]`` True where the matched box is difficult and ignored.
        truths: ``[I]`` counted ground-truth boxes per image.
    """

    scores: np.ndarray
    images: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    truths: np.ndarray


def inclusive_iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of one ``[4]`` xyxy box with ``[G, 4]``, with inclusive pixel coordinates."""
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[2:], others[:, 2:])
    inner = np.clip(high - low + 1, 0, None).prod(axis=1)
    area = (box[2:] - box[:2] + 1).prod()
    areas = (others[:, 2:] - others[:, :2] + 1).prod(axis=1)
    return inner / (area + areas - inner)


def match_class(
    truth: GroundTruth, results: Sequence[Mapping[str, Any]], category: int, threshold: float, difficult: str
) -> VocMatches:
    """Match the detections of one class; ties in score keep file order."""
    position = {image["id"]: i for i, image in enumerate(truth.data["images"])}
    boxes: dict[Any, list[Box]] = {}
    skip: dict[Any, list[bool]] = {}
    truths = np.zeros(len(position), dtype=np.int64)
    for a in truth.data["annotations"]:
        if a["category_id"] == category:
            left_out = difficult == "ignore" and bool(a.get("difficult"))
            boxes.setdefault(a["image_id"], []).append(to_xyxy(a["bbox"]))
            skip.setdefault(a["image_id"], []).append(left_out)
            truths[position[a["image_id"]]] += not left_out
    mine = sorted((r for r in results if r["category_id"] == category), key=lambda r: -r["score"])
    arrays = {k: np.array(v) for k, v in boxes.items()}
    taken = {k: np.zeros(len(v), dtype=bool) for k, v in boxes.items()}
    hits, ignored = np.zeros(len(mine), dtype=bool), np.zeros(len(mine), dtype=bool)
    for i, r in enumerate(mine):
        others = arrays.get(r["image_id"])
        if others is None:
            continue
        overlap = inclusive_iou(np.array(to_xyxy(r["bbox"])), others)
        best = int(overlap.argmax())
        if overlap[best] < threshold:
            continue
        if skip[r["image_id"]][best]:
            ignored[i] = True
        elif not taken[r["image_id"]][best]:
            hits[i] = taken[r["image_id"]][best] = True
    scores = np.array([r["score"] for r in mine], dtype=float)
    images = np.array([position[r["image_id"]] for r in mine], dtype=np.int64)
    return VocMatches(scores, images, hits, ignored, truths)


def average_precision(hits: np.ndarray, misses: np.ndarray, truths: float, points: str) -> float:
    """Area under the precision envelope (``all``), or its mean at 11 recalls (``11``)."""
    if truths == 0:
        return float("nan")
    recall = hits.cumsum() / truths
    precision = hits.cumsum() / np.maximum(hits.cumsum() + misses.cumsum(), np.finfo(float).tiny)
    if points == "11":
        return float(np.mean([precision[recall >= r].max(initial=0.0) for r in np.linspace(0, 1, 11)]))
    recall = np.concatenate([[0.0], recall, [1.0]])
    envelope = np.maximum.accumulate(np.concatenate([[0.0], precision, [0.0]])[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(((recall[steps + 1] - recall[steps]) * envelope[steps + 1]).sum())


def evaluate_voc(
    truth: GroundTruth,
    results: Sequence[Mapping[str, Any]],
    *,
    backend: str = BACKENDS[0],
    threshold: float = 0.5,
    difficult: str = DIFFICULT[0],
) -> tuple[dict[str, float], dict[str, float | None]]:
    """VOC metrics.

    Returns:
        ``mAP`` (all-point; also under MMDetection's name ``AP50``) and ``mAP_11`` (11-point), means over the classes
        with ground truth; and all-point AP of each class, None without ground truth.
    """
    check_choice("difficult", difficult, DIFFICULT)
    check_choice("backend", backend, BACKENDS)
    classes = truth.categories
    per_class: dict[str, dict[str, float]] = {"all": {}, "11": {}}
    if backend == "reference":
        for points in per_class:
            per_class[points] = _reference(truth, results, threshold, difficult, points)
    else:
        for category, name in classes.items():
            m = match_class(truth, results, category, threshold, difficult)
            misses = ~m.hits & ~m.ignored
            for points, values in per_class.items():
                values[name] = average_precision(m.hits, misses, float(m.truths.sum()), points)
    means = {k: [x for x in v.values() if not np.isnan(x)] for k, v in per_class.items()}
    names = {"mAP": "all", "AP50": "all", "mAP_11": "11"}
    metrics = {n: float(np.mean(means[k])) if means[k] else -1.0 for n, k in names.items()}
    return metrics, {n: None if np.isnan(v) else v for n, v in per_class["all"].items()}


def _reference(
    truth: GroundTruth, results: Sequence[Mapping[str, Any]], threshold: float, difficult: str, points: str
) -> dict[str, float]:
    from mmdet.evaluation.functional import eval_map

    categories = list(truth.categories)
    order = {image["id"]: i for i, image in enumerate(truth.data["images"])}
    found = [[np.zeros((0, 5)) for _ in categories] for _ in order]
    rows: dict[tuple[int, int], list[list[float]]] = {}
    # MMDetection breaks ties arbitrarily; ranks give the same order without ties.
    for rank, r in enumerate(sorted(results, key=lambda a: -a["score"])):
        if r["category_id"] in categories:
            key = (order[r["image_id"]], categories.index(r["category_id"]))
            rows.setdefault(key, []).append([*to_xyxy(r["bbox"]), -float(rank)])
    for (image, category), values in rows.items():
        found[image][category] = np.array(values)
    fields = ("bboxes", "labels", "bboxes_ignore", "labels_ignore")
    annotations: list[dict[str, Any]] = [{f: [] for f in fields} for _ in order]
    for a in truth.data["annotations"]:
        kind = "_ignore" if difficult == "ignore" and a.get("difficult") else ""
        annotations[order[a["image_id"]]][f"bboxes{kind}"].append(to_xyxy(a["bbox"]))
        annotations[order[a["image_id"]]][f"labels{kind}"].append(categories.index(a["category_id"]))
    for a in annotations:
        for kind in ("", "_ignore"):
            a[f"bboxes{kind}"] = np.array(a[f"bboxes{kind}"], dtype=float).reshape(-1, 4)
            a[f"labels{kind}"] = np.array(a[f"labels{kind}"], dtype=np.int64)
    mode = "11points" if points == "11" else "area"
    _, tables = eval_map(
        found, annotations, iou_thr=threshold, eval_mode=mode, logger="silent", nproc=1, use_legacy_coordinate=True
    )
    aps = [float(t["ap"]) if t["num_gts"] else float("nan") for t in tables]
    return {truth.categories[c]: ap for c, ap in zip(categories, aps, strict=True)}

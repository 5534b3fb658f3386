"""LVIS average precision (arXiv 1908.03195): federated annotations, 300 detections per image, groups by frequency.

``reference`` is lvis-api, ``fast`` is faster-coco-eval in LVIS mode. The latter does not limit detections per image
over all classes, so the limit is applied first. It evaluates classes in groups to bound its memory; AP is per class, so
the result is the same.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.rules import BACKENDS, IOU_TYPES, LVIS_LIMIT
from smartclip_det.formats.annotations import GroundTruth, with_numbers
from smartclip_det.formats.columns import DetectionColumns
from smartclip_det.formats.lvis import FREQUENCIES, check_lvis
from smartclip_det.formats.segmentations import mask_areas, with_run_lengths
from smartclip_det.metrics.coco import CocoTables, mask_results
from smartclip_det.utils.compat import allow_numpy_float
from smartclip_det.utils.garbage_collection import without_collector
from smartclip_det.utils.parallel import available_cores, map_in_processes

#: Detections, and (image, class) pairs, per group of classes in the fast backend; they bound its memory.
GROUP_DETECTIONS = 200_000
GROUP_PAIRS = 400_000
#: Number of detections from which groups are evaluated in several processes, which take a second to start.
PROCESSES_FROM = 300_000
#: Above the largest size class (1e5 squared).
_OUTSIZE = 1e12
#: Fixed AP (arXiv 2102.01066): the top detections of each class over the whole data set, without a limit per image.
FIXED_PER_CLASS = 10_000


def limit_detections(results: Sequence[Mapping[str, Any]], limit: int) -> DetectionColumns | list[dict[str, Any]]:
    """Keep the ``limit`` best detections of each image over all classes; ties keep file order. Negative: all."""
    if results and "segmentation" in results[0]:
        if limit < 0:
            return [dict(r) for r in results]
        by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for r in results:
            by_image[r["image_id"]].append(dict(r))
        return [r for rows in by_image.values() for r in sorted(rows, key=lambda a: a["score"], reverse=True)[:limit]]
    columns = DetectionColumns.from_results(results)
    return columns if limit < 0 else columns.best_of_each(columns.images, limit)


def limit_per_class(results: Sequence[Mapping[str, Any]], limit: int = FIXED_PER_CLASS) -> DetectionColumns:
    """Keep the ``limit`` best boxes of each class over all images; ties keep file order."""
    columns = DetectionColumns.from_results(results)
    return columns.best_of_each(np.unique(columns.categories, return_inverse=True)[1], limit)


def evaluate_lvis(
    truth: GroundTruth,
    results: Sequence[Mapping[str, Any]],
    *,
    backend: str = BACKENDS[0],
    iou_type: str = IOU_TYPES[0],
    max_dets: int = LVIS_LIMIT,
    fixed: bool = False,
) -> tuple[dict[str, float], dict[str, float | None]]:
    """LVIS metrics and AP of each class.

    Args:
        truth: LVIS annotations.
        results: validated results.
        backend: ``fast`` or ``reference``.
        iou_type: ``bbox`` or ``segm``.
        max_dets: detections per image over all classes; -1 for no limit.
        fixed: fixed AP: the top 10,000 of each class over all images; requires ``max_dets=-1`` and boxes.

    Returns:
        ``bbox_AP``, ``bbox_AP50``, ``bbox_AP75``, ``bbox_APs/m/l``, ``bbox_APr/c/f`` and ``bbox_AR@max_dets``
        (or ``segm_``), -1 without ground truth; and per-class AP, None without ground truth.
    """
    check_choice("backend", backend, BACKENDS)
    check_lvis(truth)
    truth, results = with_numbers(truth, results)
    if fixed and (max_dets >= 0 or iou_type != "bbox"):
        raise UserError(f"Fixed AP is for boxes and has no limit per image; given {iou_type}, max_dets={max_dets}.")
    kept = limit_per_class(results) if fixed else limit_detections(results, max_dets)
    tables_of = _reference_tables if backend == "reference" else _fast_tables
    tables = tables_of(truth, kept, iou_type, max_dets)
    groups = {f: [k for k, c in enumerate(_sorted_categories(truth)) if c["frequency"] == f] for f in FREQUENCIES}
    prefix = f"{iou_type}_"
    metrics = {f"{prefix}AP": tables.ap(), f"{prefix}AP50": tables.ap(0.5), f"{prefix}AP75": tables.ap(0.75)}
    metrics.update({f"{prefix}AP{s[1]}": tables.ap(size=s) for s in ("_s", "_m", "_l")})
    metrics.update({f"{prefix}AP{f}": tables.ap(classes=groups[f]) for f in FREQUENCIES})
    metrics[f"{prefix}AR@{max_dets}"] = tables.ar(max_dets)
    metrics.update({f"{prefix}AR{s[1]}@{max_dets}": tables.ar(max_dets, s) for s in ("_s", "_m", "_l")})
    return metrics, tables.class_ap()


def base_novel_metrics(
    metrics: Mapping[str, float], class_ap: Mapping[str, float | None], truth: GroundTruth, iou_type: str = "bbox"
) -> dict[str, float]:
    """OV-LVIS split (ViLD, arXiv 2104.13921): novel = rare, base = common and frequent (337 and 866 of LVIS v1)."""
    frequency = {c["name"]: c["frequency"] for c in truth.data["categories"]}
    base = [v for n, v in class_ap.items() if v is not None and frequency[n] in "cf"]
    return {
        f"{iou_type}_AP_novel": metrics[f"{iou_type}_APr"],
        f"{iou_type}_AP_base": float(np.mean(base)) if base else -1.0,
    }


def _sorted_categories(truth: GroundTruth) -> list[dict[str, Any]]:
    return sorted(truth.data["categories"], key=lambda c: c["id"])


def reference_evaluator(
    truth: GroundTruth, results: Sequence[Mapping[str, Any]], iou_type: str, only_all_areas: bool = False
) -> Any:
    """lvis-api's evaluator after matching; ``results`` must already be limited.

    Args:
        truth: LVIS annotations.
        results: at least one result.
        iou_type: ``bbox`` or ``segm``.
        only_all_areas: skip the size classes.
    """
    truth, results = _with_masks(truth, results, iou_type)
    allow_numpy_float()
    from lvis import LVIS, LVISEval, LVISResults

    if not results:
        # lvis-api fails on an empty list; it ignores a box without area, so one of those stands for "no detections".
        image, category = truth.data["images"][0]["id"], _sorted_categories(truth)[0]["id"]
        results = [{"image_id": image, "category_id": category, "bbox": [0.0, 0.0, 0.0, 0.0], "score": 0.0}]
    quiet = logging.getLogger("lvis")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            # lvis-api reads files only.
            path = Path(folder) / "truth.json"
            path.write_text(json.dumps(truth.data), encoding="utf-8")
            gt = LVIS(str(path))
            evaluator = LVISEval(gt, LVISResults(gt, list(results), max_dets=-1), iou_type)
            if only_all_areas:
                evaluator.params.area_rng = evaluator.params.area_rng[:1]
                evaluator.params.area_rng_lbl = ["all"]
            evaluator.evaluate()
    finally:
        quiet.setLevel(level)
    return evaluator


def _with_masks(
    truth: GroundTruth, results: Sequence[Mapping[str, Any]], iou_type: str
) -> tuple[GroundTruth, Sequence[Mapping[str, Any]]]:
    """Truth and results with validated run lengths if ``iou_type`` is ``segm``."""
    if iou_type != "segm":
        return truth, results
    masked = GroundTruth(with_run_lengths(truth.data, truth.path), truth.path, truth.image_sizes)
    return masked, mask_results(results, truth.data)


def _countable(
    truth: GroundTruth, results: Sequence[Mapping[str, Any]], iou_type: str
) -> tuple[list[dict[str, Any]], Sequence[Mapping[str, Any]]]:
    """Reproduce lvis-api's selection of annotations and detections for faster-coco-eval.

    lvis-api drops entries without area on both sides before it determines the classes of an image (``get_ann_ids``).
    It ignores ``iscrowd``. An annotation with ``ignore`` counts for neither side but can be matched, which equals an
    object outside all size classes. Detections of classes that were not annotated in their image are dropped as well;
    faster-coco-eval fails on their masks.
    """
    annotations = []
    for a in truth.data["annotations"]:
        if 0 < a["area"] < math.inf:
            annotations.append({**a, "iscrowd": 0, "area": _OUTSIZE if a.get("ignore") else a["area"]})
    asked = {(a["image_id"], a["category_id"]) for a in annotations}
    asked |= {(i["id"], c) for i in truth.data["images"] for c in i["neg_category_ids"]}
    if iou_type == "segm":
        rows = [r for r in results if (r["image_id"], r["category_id"]) in asked]
        areas = mask_areas([r["segmentation"] for r in rows])
        return annotations, [r for r, area in zip(rows, areas, strict=True) if area > 0]
    columns = DetectionColumns.from_results(results)
    with np.errstate(over="ignore"):
        area = columns.boxes[:, 2] * columns.boxes[:, 3]
    return annotations, columns.take((area > 0) & np.isfinite(area) & _asked(columns, asked))


def _asked(columns: DetectionColumns, pairs: set[tuple[Any, Any]]) -> np.ndarray:
    """``[N]`` bool: whether the (image, class) of a detection is one of the pairs."""
    different, classes = np.unique(columns.categories, return_inverse=True)
    place = {c: n for n, c in enumerate(different.tolist())}
    wanted = np.zeros((len(columns.image_ids), len(different)), dtype=bool)
    rows = {image: n for n, image in enumerate(columns.image_ids)}
    for image, category in pairs:
        if image in rows and category in place:
            wanted[rows[image], place[category]] = True
    return wanted[columns.images, classes]


def _reference_tables(
    truth: GroundTruth, results: Sequence[Mapping[str, Any]], iou_type: str, limit: int
) -> CocoTables:
    evaluator = reference_evaluator(truth, results, iou_type)
    evaluator.accumulate()
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
    return _tables(truth, precision[..., None], recall[..., None], np.asarray(evaluator.params.iou_thrs), limit)


def _tables(
    truth: GroundTruth, precision: np.ndarray, recall: np.ndarray, thresholds: np.ndarray, limit: int
) -> CocoTables:
    return CocoTables(precision, recall, thresholds, [c["name"] for c in _sorted_categories(truth)], [limit])


@dataclass
class _Group:
    """Classes with all data that their evaluation needs, picklable for worker processes."""

    ids: list[int]
    categories: list[dict[str, Any]]
    images: list[dict[str, Any]]
    boxes: list[dict[str, Any]]
    results: Sequence[Mapping[str, Any]]
    iou_type: str


def _fast_tables(truth: GroundTruth, results: Sequence[Mapping[str, Any]], iou_type: str, limit: int) -> CocoTables:
    from tqdm import tqdm

    truth, results = _with_masks(truth, results, iou_type)
    countable, results = _countable(truth, results, iou_type)
    categories = _sorted_categories(truth)
    annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for a in countable:
        annotations[a["category_id"]].append(a)
    rows_of = _by_class(results)
    counts = {i: len(r) for i, r in rows_of.items()}
    large = len(results) >= PROCESSES_FROM
    groups, least = [], 2 * available_cores() if large else 1
    for ids in _groups([c["id"] for c in categories], counts, len(truth.data["images"]), least):
        boxes = [a for i in ids for a in annotations[i]]
        found = [rows_of[i] for i in ids if i in rows_of]
        joined: Sequence[Mapping[str, Any]]
        if found and isinstance(results, DetectionColumns):
            joined = DetectionColumns.cat(found)  # type: ignore[arg-type]
        else:
            joined = [r for rows in found for r in rows]
        # An image with neither boxes nor detections does not affect the group's precision.
        asked = {a["image_id"] for a in boxes} | _images_of(joined)
        images = [i for i in truth.data["images"] if i["id"] in asked] or truth.data["images"][:1]
        named = [c for c in categories if c["id"] in set(ids)]
        groups.append(_Group(ids, named, images, boxes, joined, iou_type))
    parts = map_in_processes(_evaluate_group, groups, None if large else 1, items_each=1)
    done = list(tqdm(parts, total=len(groups), desc="LVIS classes", unit="group", disable=not large))
    return _tables(
        truth,
        np.concatenate([d[0] for d in done], axis=2),
        np.concatenate([d[1] for d in done], axis=1),
        done[0][2],
        limit,
    )


def _images_of(results: Sequence[Mapping[str, Any]]) -> set[Any]:
    if isinstance(results, DetectionColumns):
        return {results.image_ids[i] for i in np.unique(results.images).tolist()}
    return {r["image_id"] for r in results}


def _evaluate_group(group: _Group) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision ``[T, 101, K, A, 1]``, recall ``[T, K, A, 1]`` and T IoU thresholds of K classes and A size classes."""
    from faster_coco_eval import COCO, COCOeval_faster

    frame = {"images": group.images, "categories": group.categories}
    with contextlib.redirect_stdout(io.StringIO()), without_collector():
        gt = COCO({**frame, "annotations": group.boxes})
        dt = gt.loadRes(list(group.results)) if len(group.results) else COCO({**frame, "annotations": []})
        evaluator = COCOeval_faster(gt, dt, group.iou_type, lvis_style=True, print_function=lambda *_: None)
        evaluator.params.catIds = sorted(group.ids)
        # The limit per image over all classes is already applied; disable the limit per class.
        evaluator.params.maxDets = [max(1, len(group.results))]
        evaluator.evaluate()
        evaluator.accumulate()
    p = evaluator.params
    shape = (len(p.iouThrs), len(p.recThrs), len(group.ids), len(p.areaRng), 1)
    precision = np.asarray(evaluator.eval["precision"]).reshape(shape)
    return precision, np.asarray(evaluator.eval["recall"]).reshape(shape[:1] + shape[2:]), np.asarray(p.iouThrs)


def _by_class(results: Sequence[Mapping[str, Any]]) -> dict[Any, Sequence[Mapping[str, Any]]]:
    """Results of each category, in file order; columns stay columns."""
    if not isinstance(results, DetectionColumns):
        by_class: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
        for r in results:
            by_class[r["category_id"]].append(r)
        return dict(by_class)
    order = np.argsort(results.categories, kind="stable")
    different, starts = np.unique(results.categories[order], return_index=True)
    parts = np.split(order, starts[1:]) if len(order) else []
    return {c: results.take(part) for c, part in zip(different.tolist(), parts, strict=True)}


def _groups(ids: Sequence[int], counts: Mapping[int, int], images: int, least: int = 1) -> list[list[int]]:
    """Split class ids into consecutive groups within the bounds on detections and (image, class) pairs.

    There are at least ``least`` groups.
    """
    groups: list[list[int]] = []
    size = GROUP_DETECTIONS
    most = max(1, min(GROUP_PAIRS // max(images, 1), -(-len(ids) // least)))
    for i in ids:
        count = counts.get(i, 0)
        if not groups or size + count > GROUP_DETECTIONS or len(groups[-1]) >= most:
            groups.append([])
            size = 0
        groups[-1].append(i)
        size += count
    return groups

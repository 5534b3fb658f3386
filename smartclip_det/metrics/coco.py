"""COCO average precision with two interchangeable backends, and base/novel AP for OV-COCO.

``reference`` is pycocotools, ``fast`` is faster-coco-eval; they agree to 1e-9 on all test cases. Classes are matched by
name. OV-COCO follows the generalised setting of OVR-CNN (arXiv 2011.10678): 48 base and 17 novel classes in one run.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartclip_det.core.errors import check_choice
from smartclip_det.core.rules import BACKENDS, COCO_LIMITS, IOU_TYPES
from smartclip_det.formats.annotations import GroundTruth, with_numbers
from smartclip_det.formats.segmentations import run_lengths, with_run_lengths

_SIZES = {"": 0, "_s": 1, "_m": 2, "_l": 3}


@dataclass
class CocoTables:
    """Result tables of one evaluation.

    Attributes:
        precision: ``[T, R, K, A, M]`` over IoU thresholds, recall points, classes, areas, detection limits; -1
            where a class has no ground truth.
        recall: ``[T, K, A, M]``, with the same convention.
        thresholds: T IoU thresholds.
        names: K class names.
        max_dets: M detection limits per image.
    """

    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray
    names: list[str]
    max_dets: list[int]

    def ap(self, threshold: float | None = None, size: str = "", classes: Sequence[int] | None = None) -> float:
        """Mean precision at the largest detection limit; -1 when no class has ground truth."""
        part = self.precision[..., _SIZES[size], -1]
        if threshold is not None:
            part = part[np.isclose(self.thresholds, threshold)]
        if classes is not None:
            part = part[:, :, list(classes)]
        return _mean(part)

    def ar(self, limit: int, size: str = "") -> float:
        """Mean recall at a detection limit; -1 when no class has ground truth."""
        return _mean(self.recall[:, :, _SIZES[size], self.max_dets.index(limit)])

    def class_ap(self, threshold: float | None = None) -> dict[str, float | None]:
        """AP of each class; None without ground truth."""
        values = {name: self.ap(threshold, classes=[k]) for k, name in enumerate(self.names)}
        return {name: None if value == -1 else value for name, value in values.items()}


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


def evaluate_tables(
    truth: GroundTruth,
    results: Sequence[Mapping[str, Any]],
    *,
    backend: str = BACKENDS[0],
    iou_type: str = IOU_TYPES[0],
    max_dets: Sequence[int] = COCO_LIMITS,
    names: Sequence[str] | None = None,
    use_categories: bool = True,
) -> CocoTables:
    """Run COCO evaluation.

    Args:
        truth: annotations.
        results: validated COCO results.
        backend: ``fast`` or ``reference``.
        iou_type: ``bbox`` or ``segm``.
        max_dets: detection limits per image and class.
        names: classes to evaluate, matched by name; None for all classes of the file.
        use_categories: False to ignore classes (class-agnostic AP).
    """
    check_choice("backend", backend, BACKENDS)
    check_choice("iou_type", iou_type, IOU_TYPES)
    truth, results = with_numbers(truth, results)
    chosen = list(truth.categories.values()) if names is None else list(names)
    ids = truth.category_ids(chosen)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = build_evaluator(truth, results, backend, iou_type)
        evaluator.params.catIds = ids
        evaluator.params.imgIds = sorted({i["id"] for i in truth.data["images"]})
        evaluator.params.maxDets = list(max_dets)
        evaluator.params.useCats = int(use_categories)
        evaluator.evaluate()
        evaluator.accumulate()
    # Both libraries sort class ids: put the columns back in the order of the names.
    order = [sorted(ids).index(i) for i in ids] if use_categories else [0]
    return CocoTables(
        precision=np.asarray(evaluator.eval["precision"]).reshape(_shape(evaluator, 5))[:, :, order],
        recall=np.asarray(evaluator.eval["recall"]).reshape(_shape(evaluator, 4))[:, order],
        thresholds=np.asarray(evaluator.params.iouThrs),
        names=chosen if use_categories else ["any"],
        max_dets=list(max_dets),
    )


def _shape(evaluator: Any, axes: int) -> tuple[int, ...]:
    p = evaluator.params
    classes = len(set(p.catIds)) if p.useCats else 1
    full = (len(p.iouThrs), len(p.recThrs), classes, len(p.areaRng), len(p.maxDets))
    return full if axes == 5 else full[:1] + full[2:]


def build_evaluator(truth: GroundTruth, results: Sequence[Mapping[str, Any]], backend: str, iou_type: str) -> Any:
    """Build COCOeval of either library, without running it."""
    # Evaluators modify their input, and the annotations belong to the caller.
    copies = [dict(r) for r in results]
    if iou_type == "segm":
        annotations, copies = with_run_lengths(truth.data, truth.path), mask_results(copies, truth.data)
    else:
        annotations = {**truth.data, "annotations": [dict(a) for a in truth.data["annotations"]]}
    if backend == "reference":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        gt = COCO()
        gt.dataset = annotations
        gt.createIndex()
        return COCOeval(gt, _load_results(gt, copies, COCO, annotations), iou_type)
    import faster_coco_eval

    gt = faster_coco_eval.COCO(annotations)
    dt = _load_results(gt, copies, faster_coco_eval.COCO, annotations)
    return faster_coco_eval.COCOeval_faster(gt, dt, iou_type, print_function=lambda *_: None)


def _load_results(gt: Any, results: list[dict[str, Any]], kind: Any, annotations: Mapping[str, Any]) -> Any:
    if results:
        return gt.loadRes(results)
    empty = kind()
    empty.dataset = {"images": annotations["images"], "categories": annotations["categories"], "annotations": []}
    empty.createIndex()
    return empty


def mask_results(results: Sequence[Mapping[str, Any]], annotations: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Masks as RLE without boxes, so that size classes use the mask area (as in MMDetection)."""
    sizes = {i["id"]: (i.get("height"), i.get("width")) for i in annotations["images"]}
    out = []
    for r in results:
        plain = {k: v for k, v in r.items() if k != "bbox"}
        plain["segmentation"] = dict(run_lengths(r["segmentation"], *sizes[r["image_id"]]))
        out.append(plain)
    return out


def coco_metrics(tables: CocoTables, iou_type: str = IOU_TYPES[0]) -> dict[str, float]:
    """The twelve COCO numbers under MMDetection's names, unrounded."""
    out = {
        f"{iou_type}_mAP": tables.ap(),
        f"{iou_type}_mAP_50": tables.ap(0.5),
        f"{iou_type}_mAP_75": tables.ap(0.75),
        **{f"{iou_type}_mAP{size}": tables.ap(size=size) for size in ("_s", "_m", "_l")},
    }
    for limit in tables.max_dets:
        out[f"{iou_type}_AR@{limit}"] = tables.ar(limit)
    last = tables.max_dets[-1]
    return {**out, **{f"{iou_type}_AR{size}@{last}": tables.ar(last, size) for size in ("_s", "_m", "_l")}}


def open_vocabulary_metrics(tables: CocoTables, base: Sequence[str], novel: Sequence[str]) -> dict[str, float]:
    """Base, novel and joint AP at IoU 0.5: means over classes with ground truth."""
    base_index = [tables.names.index(n) for n in base]
    novel_index = [tables.names.index(n) for n in novel]
    return {
        "base_ap50": tables.ap(0.5, classes=base_index),
        "novel_ap50": tables.ap(0.5, classes=novel_index),
        "all_ap50": tables.ap(0.5, classes=[*base_index, *novel_index]),
    }

"""PASCAL VOC average precision at one IoU threshold, all-point and 11-point.

IoU counts pixels inclusively (+1), as the VOC tools do. A detection is a hit when the ground-truth box that it
overlaps most has IoU >= threshold and was not taken by a better-scored one. Objects marked difficult are
counted like others by default (as the common re-implementations do) or left out of both sides (``ignore``, the
official devkit).

``fast`` is vectorised here; ``reference`` is MMDetection's ``eval_map`` (fp32 inside, agrees to 1e-6).
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.formats.detections import GroundTruth

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
DIFFICULT = ("count", "ignore")


@dataclass
class VocMatches:
    """Detections of one class, best first.

    Attributes:
        scores: ``[N]``.
        images: ``[N]`` image positions.
        hits: ``[N]`` True for hits.
        ignored: ``[N]`` True where the best box is a difficult one that is left out.
        truths: ``[I]`` counted ground-truth boxes of each image.
    """

    scores: np.ndarray
    images: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    truths: np.ndarray


def load_voc_folder(folder: str | Path) -> GroundTruth:
    """Read a folder of VOC xml files as COCO-like annotations.

    Images are numbered from 1 in file-name order, categories by the 20 VOC names (1 to 20), or by the sorted
    names found when others occur. Boxes become x, y, xmax - xmin, ymax - ymin.
    """
    files = sorted(Path(folder).glob("*.xml"))
    if not files:
        raise UserError(f"No VOC xml files in {folder}.")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    objects: list[tuple[int, str, list[float], bool]] = []
    for number, path in enumerate(files, 1):
        try:
            root = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            raise UserError(f"{path} is not valid xml ({error}).") from error
        size = root.find("size")
        image: dict[str, Any] = {"id": number, "file_name": root.findtext("filename") or f"{path.stem}.jpg"}
        if size is not None:
            image.update(width=_number(size, "width", path), height=_number(size, "height", path))
        images.append(image)
        for node in root.iter("object"):
            corners = [_number(node, f"bndbox/{k}", path) for k in ("xmin", "ymin", "xmax", "ymax")]
            objects.append((number, node.findtext("name") or "", corners, node.findtext("difficult") == "1"))
    found = sorted({o[1] for o in objects})
    names = VOC_CLASSES if set(found) <= set(VOC_CLASSES) else tuple(found)
    for i, (number, name, (x1, y1, x2, y2), difficult) in enumerate(objects, 1):
        annotations.append({"id": i, "image_id": number, "category_id": names.index(name) + 1, "iscrowd": 0,
                            "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
                            "difficult": int(difficult)})  # fmt: skip
    categories = [{"id": i, "name": n} for i, n in enumerate(names, 1)]
    sizes = {i["id"]: (i["width"], i["height"]) for i in images if "width" in i}
    data = {"images": images, "annotations": annotations, "categories": categories}
    return GroundTruth(data, str(folder), sizes)


def _number(node: ElementTree.Element, key: str, path: Path) -> float:
    try:
        return float(node.findtext(key) or "nothing")
    except ValueError as error:
        raise UserError(f"{path}: <{key.rsplit('/', 1)[-1]}> is missing or no number.") from error


def number_voc_images(results: Sequence[Any], truth: GroundTruth) -> list[Any]:
    """Results that name images by file stem (``2007_000027``) get the numbers of :func:`load_voc_folder`."""
    numbers = {Path(i["file_name"]).stem: i["id"] for i in truth.data["images"]}
    return [
        {**r, "image_id": numbers[Path(r["image_id"]).stem]}
        if isinstance(r, Mapping) and isinstance(r.get("image_id"), str) and Path(r["image_id"]).stem in numbers
        else r
        for r in results
    ]


def inclusive_iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of one ``[4]`` xyxy box with ``[G, 4]``, counting both border pixels."""
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
    boxes: dict[Any, list[list[float]]] = {}
    skip: dict[Any, list[bool]] = {}
    truths = np.zeros(len(position), dtype=np.int64)
    for a in truth.data["annotations"]:
        if a["category_id"] == category:
            left_out = difficult == "ignore" and bool(a.get("difficult"))
            boxes.setdefault(a["image_id"], []).append(_xyxy(a["bbox"]))
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
        overlap = inclusive_iou(np.array(_xyxy(r["bbox"])), others)
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


def _xyxy(box: Sequence[float]) -> list[float]:
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


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
    truth: GroundTruth, results: Sequence[Mapping[str, Any]], *, backend: str = "fast", threshold: float = 0.5,
    difficult: str = "count",
) -> tuple[dict[str, float], dict[str, float | None]]:  # fmt: skip
    """VOC metrics.

    Returns:
        ``mAP`` (all-point; also under MMDetection's name ``AP50``) and ``mAP_11`` (11-point), means over the classes
        with ground truth; and all-point AP of each class, None without ground truth.
    """
    check_choice("difficult", difficult, DIFFICULT)
    check_choice("backend", backend, ("fast", "reference"))
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
    # The library breaks ties arbitrarily; ranks say the same order without ties.
    for rank, r in enumerate(sorted(results, key=lambda a: -a["score"])):
        if r["category_id"] in categories:
            key = (order[r["image_id"]], categories.index(r["category_id"]))
            rows.setdefault(key, []).append([*_xyxy(r["bbox"]), -float(rank)])
    for (image, category), values in rows.items():
        found[image][category] = np.array(values)
    fields = ("bboxes", "labels", "bboxes_ignore", "labels_ignore")
    annotations: list[dict[str, Any]] = [{f: [] for f in fields} for _ in order]
    for a in truth.data["annotations"]:
        kind = "_ignore" if difficult == "ignore" and a.get("difficult") else ""
        annotations[order[a["image_id"]]][f"bboxes{kind}"].append(_xyxy(a["bbox"]))
        annotations[order[a["image_id"]]][f"labels{kind}"].append(categories.index(a["category_id"]))
    for a in annotations:
        for kind in ("", "_ignore"):
            a[f"bboxes{kind}"] = np.array(a[f"bboxes{kind}"], dtype=float).reshape(-1, 4)
            a[f"labels{kind}"] = np.array(a[f"labels{kind}"], dtype=np.int64)
    mode = "11points" if points == "11" else "area"
    _, tables = eval_map(found, annotations, iou_thr=threshold, eval_mode=mode, logger="silent", nproc=1,
                         use_legacy_coordinate=True)  # fmt: skip
    aps = [float(t["ap"]) if t["num_gts"] else float("nan") for t in tables]
    return {truth.categories[c]: ap for c, ap in zip(categories, aps, strict=True)}

"""Effect of a small vocabulary on saved detections: episodic AP, and false positives on absent classes.

An episode gives each image its own vocabulary: its present classes and sampled absent ones, as in deployments with 10,
30 or 100 names. Absent means annotated as absent: in LVIS annotations only the classes of ``neg_category_ids``, so a
vocabulary can be smaller than requested; such images are counted.

Detections are filtered after the fact. The result equals a run with that vocabulary only if scores do not depend on the
other classes (sigmoid) and no limit per image removed detections.

Shape letters: N detections, G ground-truth boxes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from smartclip_det.core.errors import UserError
from smartclip_det.formats.annotations import GroundTruth
from smartclip_det.formats.columns import DetectionColumns
from smartclip_det.metrics.coco import evaluate_tables


@dataclass
class Episodes:
    """Vocabulary of each image.

    Attributes:
        present: present classes in the vocabulary, by image id.
        absent: absent classes in the vocabulary, by image id.
        short: images whose vocabulary is smaller than requested.
    """

    present: dict[Any, set[Any]]
    absent: dict[Any, set[Any]]
    short: int


def sample_episodes(truth: GroundTruth, size: int, seed: int = 0) -> Episodes:
    """Sample vocabularies of ``size`` names; of an image with more present classes, ``size`` of them are sampled.

    Deterministic given the seed and image id, for any order of the file.
    """
    if size < 1:
        raise UserError(f"A vocabulary needs at least one name; given size {size}.")
    found: dict[Any, set[Any]] = {i["id"]: set() for i in truth.data["images"]}
    for a in truth.data["annotations"]:
        found[a["image_id"]].add(a["category_id"])
    every = set(truth.categories)
    present, absent, short = {}, {}, 0
    for image in truth.data["images"]:
        draw = random.Random(f"{seed} {image['id']}")
        here = sorted(found[image["id"]])
        known_absent = set(image["neg_category_ids"]) if "neg_category_ids" in image else every
        pool = sorted(known_absent - found[image["id"]])
        present[image["id"]] = set(here if len(here) <= size else draw.sample(here, size))
        missing = size - len(present[image["id"]])
        absent[image["id"]] = set(pool if len(pool) <= missing else draw.sample(pool, missing))
        short += len(pool) < missing
    return Episodes(present, absent, short)


def vocabulary_report(
    truth: GroundTruth, results: Sequence[Mapping[str, Any]], size: int, thresholds: Sequence[float], seed: int = 0
) -> dict[str, Any]:
    """Metrics for one vocabulary size.

    Returns:
        ``ap50`` (COCO's, over the episodes' classes), ``vocabulary`` (mean size), ``short_images``, and for each
        threshold ``false_positives`` per image ``on_absent`` and ``on_present`` classes at IoU 0.5,
        ``share_on_absent`` of all false positives, and ``absent_fired``: the fraction of absent (image, class) pairs
        with a detection. -1 if undefined.
    """
    episodes = sample_episodes(truth, size, seed)
    kept = DetectionColumns.from_results(results)
    pairs = zip(kept.images.tolist(), kept.categories.tolist(), strict=True)
    named = [(kept.image_ids[i], c) for i, c in pairs]
    on_absent = np.array([c in episodes.absent.get(i, ()) for i, c in named], dtype=bool)
    on_present = np.array([c in episodes.present.get(i, ()) for i, c in named], dtype=bool)
    boxes = [a for a in truth.data["annotations"] if a["category_id"] in episodes.present[a["image_id"]]]
    asked = GroundTruth({**truth.data, "annotations": boxes}, truth.path, truth.image_sizes)
    images = max(len(truth.data["images"]), 1)
    absent_pairs = sum(len(v) for v in episodes.absent.values())
    sizes = [len(episodes.present[i]) + len(episodes.absent[i]) for i in episodes.present]
    report: dict[str, Any] = {
        "ap50": evaluate_tables(asked, kept.take(on_absent | on_present)).ap(0.5) if boxes else -1.0,
        "vocabulary": float(np.mean(sizes)) if sizes else 0.0,
        "short_images": episodes.short,
        "thresholds": {},
    }
    wrong = on_present & ~true_positives(kept, on_present, boxes)
    for threshold in thresholds:
        loud = kept.scores >= threshold
        absent_count, present_count = int((loud & on_absent).sum()), int((loud & wrong).sum())
        fired = len({named[k] for k in np.flatnonzero(loud & on_absent)})
        total = absent_count + present_count
        report["thresholds"][f"{threshold:g}"] = {
            "false_positives": {"on_absent": absent_count / images, "on_present": present_count / images},
            "share_on_absent": absent_count / total if total else -1.0,
            "absent_fired": fired / absent_pairs if absent_pairs else -1.0,
        }
    return report


def true_positives(found: DetectionColumns, rows: np.ndarray, boxes: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """``[N]`` True for hits: greedy matching by score at IoU 0.5, or at least half inside a crowd region.

    A hit does not depend on the threshold, because detections with higher scores are matched first.
    """
    out = np.zeros(len(found), dtype=bool)
    truths: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
    for a in boxes:
        truths.setdefault((a["image_id"], a["category_id"]), []).append(a)
    groups: dict[tuple[Any, Any], list[int]] = {}
    for k in np.flatnonzero(rows)[np.argsort(-found.scores[rows], kind="stable")]:
        groups.setdefault((found.image_ids[found.images[k]], found.categories[k].item()), []).append(int(k))
    for key, mine in groups.items():
        group = truths.get(key, [])
        crowds = [a["bbox"] for a in group if a.get("iscrowd")]
        wanted = [a["bbox"] for a in group if not a.get("iscrowd")]
        out[mine] = _hits(found.boxes[mine], wanted) | _inside(found.boxes[mine], crowds)
    return out


def _hits(boxes: np.ndarray, wanted: Sequence[Sequence[float]]) -> np.ndarray:
    hits = np.zeros(len(boxes), dtype=bool)
    if not wanted:
        return hits
    overlap = box_iou(_corners(boxes), _corners(np.asarray(wanted, dtype=np.float64))).numpy()
    for k in range(len(boxes)):
        best = int(overlap[k].argmax())
        if overlap[k, best] >= 0.5:
            hits[k] = True
            overlap[:, best] = -1
    return hits


def _inside(boxes: np.ndarray, crowds: Sequence[Sequence[float]]) -> np.ndarray:
    if not crowds:
        return np.zeros(len(boxes), dtype=bool)
    a, b = _corners(boxes), _corners(np.asarray(crowds, dtype=np.float64))
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = (high - low).clamp(min=0).prod(dim=2)
    area = (a[:, 2:] - a[:, :2]).prod(dim=1).clamp(min=1e-9)
    return ((inner / area[:, None]).amax(dim=1) >= 0.5).numpy()


def _corners(xywh: np.ndarray) -> torch.Tensor:
    boxes = torch.from_numpy(np.ascontiguousarray(xywh)).double()
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)

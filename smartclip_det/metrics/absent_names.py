"""Detection with vocabularies that contain absent names, and sentences without a target: is "none" scored low?

Per-class average precision ignores names that occur in no image. Here all detections are ranked together, whatever
their name (AP pool, arXiv 2102.01066).

Shape letters: N detections by descending score, I images, G objects, S sentences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torchvision.ops import box_iou

from smartclip_det.core.errors import UserError
from smartclip_det.metrics.bootstrap import Metric
from smartclip_det.metrics.voc import average_precision

#: Recalls at which false alarms are counted, and fractions of targets that are kept.
RECALLS = (0.5, 0.7)
TARGETS = (0.8, 0.9, 0.95)


def match_boxes(boxes: Tensor, labels: Tensor, objects: Tensor, classes: Tensor, iou: float = 0.5) -> np.ndarray:
    """``[N]`` bool: true positives of one image; each detection takes the free object with the largest IoU.

    Args:
        boxes: ``[N, 4]`` xyxy, by descending score.
        labels: ``[N]``.
        objects: ``[G, 4]`` xyxy.
        classes: ``[G]``.
        iou: minimum IoU of a match.
    """
    hits = np.zeros(len(boxes), dtype=bool)
    if not len(boxes) or not len(objects):
        return hits
    overlap = box_iou(boxes.float(), objects.float())
    overlap[labels[:, None] != classes[None, :]] = -1
    for n in range(len(boxes)):
        value, taken = overlap[n].max(dim=0)
        if float(value) >= iou:
            hits[n] = True
            overlap[:, taken] = -1
    return hits


@dataclass
class PooledDetections:
    """All detections of a data set as one ranking.

    Attributes:
        scores: ``[N]``, descending.
        images: ``[N]`` image indices.
        hits: ``[N]`` bool.
        absent: ``[N]`` bool: the name is not in the image.
        foreign: ``[N]`` bool: the name is in no image.
        objects: ``[I]`` number of objects per image.
    """

    scores: np.ndarray
    images: np.ndarray
    hits: np.ndarray
    absent: np.ndarray
    foreign: np.ndarray
    objects: np.ndarray

    @staticmethod
    def cat(rows: Sequence[Mapping[str, np.ndarray]], objects: Sequence[int]) -> PooledDetections:
        """Concatenate images, each with ``scores``, ``hits``, ``absent`` and ``foreign``.

        Raises:
            UserError: if no image has an object.
        """
        if not sum(objects):
            raise UserError("No image has an object of its vocabulary: there is nothing to detect.")
        joined = {k: np.concatenate([r[k] for r in rows]) for k in ("scores", "hits", "absent", "foreign")}
        images = np.repeat(np.arange(len(rows)), [len(r["scores"]) for r in rows])
        order = np.argsort(-joined["scores"], kind="stable")
        return PooledDetections(
            images=images[order], objects=np.array(objects, dtype=float), **{k: v[order] for k, v in joined.items()}
        )

    def ap(self, weights: np.ndarray | None = None) -> float:
        """All-point average precision of the pooled ranking, with image weights ``[I]``."""
        w = np.ones(len(self.objects)) if weights is None else weights
        mine = w[self.images]
        return average_precision(mine * self.hits, mine * ~self.hits, float((w * self.objects).sum()), "all")

    def facts(self) -> dict[str, float]:
        """``ap50_pooled``, and false alarms per image at fixed recall: absent and foreign names.

        -1 where the recall is not reached at any score.
        """
        out = {"ap50_pooled": self.ap()}
        found = self.hits.cumsum() / self.objects.sum()
        for recall in RECALLS:
            enough = np.flatnonzero(found >= recall)
            if not len(enough):
                out.update({f"absent_per_image_r{recall:g}": -1.0, f"foreign_per_image_r{recall:g}": -1.0})
                continue
            # Equal scores pass a threshold together.
            passed = self.scores >= self.scores[enough[0]]
            for kind, flags in (("absent", self.absent), ("foreign", self.foreign)):
                out[f"{kind}_per_image_r{recall:g}"] = float((flags & passed).sum() / len(self.objects))
        return out

    def metric(self) -> tuple[Metric, int]:
        """Metric function and number of images for the paired bootstrap."""
        return (lambda weights: {"ap50_pooled": self.ap(weights)}), len(self.objects)


def none_accuracy(best: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """``n_acc`` of GREC at given ``t_acc``, and the area under the ROC curve of "there is a target".

    Thresholds are not comparable between score scales; fractions of kept targets are.

    Args:
        best: ``[S]`` score of each sentence's best box.
        target: ``[S]`` bool: whether the sentence has a target.

    Raises:
        UserError: if one kind of sentence is missing.
    """
    yes, no = np.sort(best[target])[::-1], best[~target]
    if not len(yes) or not len(no):
        raise UserError(f"Sentences with and without a target are needed; given {len(yes)} and {len(no)}.")
    out = {}
    for share in TARGETS:
        threshold = yes[math.ceil(share * len(yes)) - 1]
        out[f"n_acc_t{share:g}"] = float((no < threshold).mean())
    below = (np.searchsorted(np.sort(no), yes, "left") + np.searchsorted(np.sort(no), yes, "right")) / 2
    return {**out, "auroc": float(below.mean() / len(no))}


def none_metric(best: np.ndarray, target: np.ndarray, images: Sequence[object]) -> tuple[Metric, int]:
    """Metric function and number of images for the bootstrap; NaN for resamples with one kind of sentence only."""
    order = {image: n for n, image in enumerate(dict.fromkeys(images))}
    position = np.array([order[i] for i in images])

    def metric(weights: np.ndarray) -> dict[str, float]:
        rows = np.repeat(np.arange(len(best)), weights[position].astype(int))
        if target[rows].all() or not target[rows].any():
            return dict.fromkeys([*(f"n_acc_t{s:g}" for s in TARGETS), "auroc"], float("nan"))
        return none_accuracy(best[rows], target[rows])

    return metric, len(order)

"""Choosing detections among R x C (box, class) pairs.

Full per-class NMS over all pairs is exact and slow (minutes for thousands of classes). Taking the M best pairs,
running NMS per class on them, and enlarging M while too few survive gives the same detections: in greedy NMS a
pair can only be removed by a better-scored one, so the survivors among the M best are survivors of the whole.

Ties: equal scores are ordered by box index, then class index. Exact for hard greedy NMS, not for soft-NMS.

Shape letters: R regions, C classes, N detections.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms


def select_detections(
    boxes: Tensor, scores: Tensor, *, score_threshold: float, iou_threshold: float, max_detections: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best (box, class) pairs after NMS per class.

    Args:
        boxes: ``[R, 4]`` class-agnostic xyxy boxes.
        scores: ``[R, C]`` scores.
        score_threshold: pairs must score more than this.
        iou_threshold: overlap above which the lower-scored pair of a class goes.
        max_detections: N at most.

    Returns:
        ``[N]`` box indices, ``[N]`` class indices and ``[N]`` scores, best first.
    """
    flat = scores.flatten()
    candidates = (flat > score_threshold).nonzero().squeeze(1)
    values = flat[candidates]
    limit = max(4 * max_detections, 1000)
    while True:
        top = _best(values, limit)
        pairs = candidates[top]
        rows, classes = pairs // scores.shape[1], pairs % scores.shape[1]
        kept = _nms_per_class(boxes[rows], values[top], classes, iou_threshold)
        if len(kept) >= max_detections or len(top) == len(values):
            kept = kept[:max_detections]
            return rows[kept], classes[kept], values[top][kept]
        limit *= 4


def _best(values: Tensor, limit: int) -> Tensor:
    """Indices of at least the ``limit`` best values (all of a tie at the border), best first, ties in order."""
    if len(values) <= limit:
        return values.argsort(descending=True, stable=True)
    border = values.topk(limit).values[-1]
    chosen = (values >= border).nonzero().squeeze(1)
    return chosen[values[chosen].argsort(descending=True, stable=True)]


def _nms_per_class(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    """Indices that survive, best first. Classes are moved apart in double precision, where offsets do not round."""
    if not len(boxes):
        return classes
    wide = boxes.double()
    span = (wide.max() - wide.min()).clamp(min=0) + 1
    order = torch.arange(len(scores), 0, -1, device=scores.device, dtype=torch.float64)
    return nms(wide + (classes.double() * span).unsqueeze(1), order, iou_threshold)

"""Choosing detections among R x C (box, class) pairs.

Full per-class NMS over all pairs is exact and slow (minutes for thousands of classes). Taking the M best pairs,
running NMS per class on them, and enlarging M while too few survive gives the same detections: in greedy NMS a
pair can only be removed by a better-scored one, so the survivors among the M best are survivors of the whole.

Ties: equal scores are ordered by box index, then class index. Exact for hard greedy NMS, not for soft-NMS.

Shape letters: R regions, C classes, N detections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

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
    return select_from_parts(
        boxes,
        lambda: [scores],
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
    )


def select_from_parts(
    boxes: Tensor,
    parts: Callable[[], Iterable[Tensor]],
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`select_detections` for scores that come in pieces ``[R, C_i]`` of the classes, never all at once.

    Args:
        boxes: ``[R, 4]`` xyxy.
        parts: gives the pieces in order; called again in the rare case that too few pairs survive.
        score_threshold: see :func:`select_detections`.
        iou_threshold: see there.
        max_detections: see there.
    """
    limit = max(4 * max_detections, 1000)
    while True:
        values, rows, classes = boxes.new_zeros(0), boxes.new_zeros(0).long(), boxes.new_zeros(0).long()
        first = candidates = 0
        for scores in parts():
            flat = scores.flatten()
            found = (flat > score_threshold).nonzero().squeeze(1)
            candidates += len(found)
            mine = flat[found]
            if len(mine) > limit:
                high = mine >= mine.topk(limit).values[-1]
                found, mine = found[high], mine[high]
            values = torch.cat([values.to(flat.dtype), mine])
            rows = torch.cat([rows, found // scores.shape[1]])
            classes = torch.cat([classes, found % scores.shape[1] + first])
            first += scores.shape[1]
            if len(values) > limit:
                kept = values >= values.topk(limit).values[-1]
                values, rows, classes = values[kept], rows[kept], classes[kept]
        # Ties by box, then class, as in one piece.
        order = (rows * first + classes).argsort()
        order = order[values[order].argsort(descending=True, stable=True)]
        values, rows, classes = values[order], rows[order], classes[order]
        kept = nms_per_class(boxes[rows], values, classes, iou_threshold)
        if len(kept) >= max_detections or len(values) == candidates:
            kept = kept[:max_detections]
            return rows[kept], classes[kept], values[kept]
        limit *= 4


def nms_per_class(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    """Indices that survive, best first. Classes are moved apart in double precision, where offsets do not round."""
    if not len(boxes):
        return classes
    wide = boxes.double()
    span = (wide.max() - wide.min()).clamp(min=0) + 1
    order = torch.arange(len(scores), 0, -1, device=scores.device, dtype=torch.float64)
    return nms(wide + (classes.double() * span).unsqueeze(1), order, iou_threshold)

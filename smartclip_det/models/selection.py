"""Selection of detections among R x C (box, class) pairs.

Per-class NMS over all pairs is exact but slow (minutes for thousands of classes). Taking the M best pairs, running
per-class NMS on them, and enlarging M while too few survive gives the same detections: in greedy NMS a pair can only
be suppressed by a higher-scored one, so the survivors among the M best also survive among all pairs.

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
    """Best (box, class) pairs after per-class NMS.

    Args:
        boxes: ``[R, 4]`` class-agnostic xyxy boxes.
        scores: ``[R, C]`` scores.
        score_threshold: only pairs with a higher score are kept.
        iou_threshold: IoU above which the lower-scored pair of a class is suppressed.
        max_detections: maximum of N.

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
    """:func:`select_detections` for scores computed in class chunks ``[R, C_i]``, never all at once.

    Args:
        boxes: ``[R, 4]`` xyxy.
        parts: yields the chunks in order; called again in the rare case that too few pairs survive.
        score_threshold: see :func:`select_detections`.
        iou_threshold: see :func:`select_detections`.
        max_detections: see :func:`select_detections`.
    """
    limit = max(4 * max_detections, 1000)
    while True:
        values, rows, classes = boxes.new_zeros(0), boxes.new_zeros(0).long(), boxes.new_zeros(0).long()
        first = candidates = 0
        for scores in parts():
            flat = scores.flatten()
            indices = (flat > score_threshold).nonzero().squeeze(1)
            candidates += len(indices)
            passing = flat[indices]
            if len(passing) > limit:
                high = passing >= passing.topk(limit).values[-1]
                indices, passing = indices[high], passing[high]
            values = torch.cat([values.to(flat.dtype), passing])
            rows = torch.cat([rows, indices // scores.shape[1]])
            classes = torch.cat([classes, indices % scores.shape[1] + first])
            first += scores.shape[1]
            if len(values) > limit:
                top = values >= values.topk(limit).values[-1]
                values, rows, classes = values[top], rows[top], classes[top]
        # Ties by box, then class, as without chunks.
        order = (rows * first + classes).argsort()
        order = order[values[order].argsort(descending=True, stable=True)]
        values, rows, classes = values[order], rows[order], classes[order]
        survivors = nms_per_class(boxes[rows], values, classes, iou_threshold)
        if len(survivors) >= max_detections or len(values) == candidates:
            survivors = survivors[:max_detections]
            return rows[survivors], classes[survivors], values[survivors]
        limit *= 4


def nms_per_class(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float) -> Tensor:
    """Surviving indices, best first. Class offsets are added in double precision, where they do not round boxes."""
    if not len(boxes):
        return classes
    wide = boxes.double()
    span = (wide.max() - wide.min()).clamp(min=0) + 1
    order = torch.arange(len(scores), 0, -1, device=scores.device, dtype=torch.float64)
    return nms(wide + (classes.double() * span).unsqueeze(1), order, iou_threshold)

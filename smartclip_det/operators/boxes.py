"""NMS, soft-NMS, NMS matching and box overlaps, with mmcv's rules for ties and thresholds.

Boxes are xyxy pixels. ``offset`` is 1 if widths count pixels (x2 - x1 + 1), else 0.
"""

from __future__ import annotations

import numpy as np
import torch
import torchvision.ops as tv

__all__ = ["bbox_overlaps", "nms", "nms_match", "softnms"]

NAIVE, LINEAR, GAUSSIAN = range(3)


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float, offset: int) -> torch.Tensor:
    """Indices [n] of the boxes [R, 4] that remain, by descending score; IoU above the threshold suppresses a box."""
    if boxes.numel() == 0:
        return torch.empty(0, dtype=torch.long, device=boxes.device)
    dtype = torch.promote_types(torch.promote_types(boxes.dtype, scores.dtype), torch.float32)
    boxes = boxes.detach().to(dtype)
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    # mmcv compares in single precision: a box with IoU equal to float32(0.3) survives a threshold of 0.3.
    threshold = float(np.float32(iou_threshold)) if dtype == torch.float32 else iou_threshold
    return tv.nms(boxes, scores.detach().to(dtype), threshold)


def _iou_with_rest(box: np.ndarray, rest: np.ndarray, offset: int) -> np.ndarray:
    """IoU [n] of one box [4] with others [n, 4]; NaN where both are empty, as in mmcv."""
    sides = np.minimum(box[2:], rest[:, 2:]) - np.maximum(box[:2], rest[:, :2]) + offset
    shared = np.maximum(sides, 0).prod(1)
    areas = (rest[:, 2:] - rest[:, :2] + offset).prod(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return shared / ((box[2:] - box[:2] + offset).prod() + areas - shared)


def _as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().to(torch.promote_types(tensor.dtype, torch.float32)).numpy()


def _best(scores: np.ndarray) -> int:
    """Index of the highest score; NaN never wins, unless it comes first."""
    return 0 if np.isnan(scores[0]) else int(np.argmax(np.where(np.isnan(scores), -np.inf, scores)))


def _decay(overlaps: np.ndarray, iou_threshold: float, sigma: float, method: int) -> np.ndarray:
    if method == GAUSSIAN:
        return np.exp(-(overlaps * overlaps) / overlaps.dtype.type(sigma))
    near = overlaps >= overlaps.dtype.type(iou_threshold)
    lowered = 1 - overlaps if method == LINEAR else np.zeros_like(overlaps)
    return np.where(near, lowered, np.ones_like(overlaps)) if method in (NAIVE, LINEAR) else np.ones_like(overlaps)


def softnms(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    dets: torch.Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> torch.Tensor:
    """Soft-NMS of boxes [R, 4] and scores [R]; ``method`` is 0 naive, 1 linear, 2 gaussian.

    Writes boxes and decayed scores into the first rows of ``dets`` [R, 5], in the order of selection.

    Returns:
        Indices [n] of those rows. A box is dropped when its score falls below ``min_score``.
    """
    if boxes.numel() == 0:
        return torch.empty(0, dtype=torch.long)
    rows = np.concatenate([_as_numpy(boxes), _as_numpy(scores)[:, None]], axis=1)
    indices = np.arange(len(rows))
    count, i = len(rows), 0
    while i < count:
        best = i + _best(rows[i:count, 4])
        rows[[i, best]], indices[[i, best]] = rows[[best, i]], indices[[best, i]]
        rest = rows[i + 1 : count]
        rest[:, 4] *= _decay(_iou_with_rest(rows[i, :4], rest[:, :4], offset), iou_threshold, sigma, method)
        # Like mmcv, fill the slot of a dropped box with the last box: the order decides ties later.
        dropped = rest[:, 4] < rows.dtype.type(min_score)
        if dropped.any():
            remaining = len(rest) - int(dropped.sum())
            order = np.arange(remaining)
            order[dropped[:remaining]] = (np.flatnonzero(~dropped[remaining:]) + remaining)[::-1]
            rest[:remaining] = rest[order]
            indices[i + 1 : i + 1 + remaining] = indices[i + 1 : count][order]
            count = i + 1 + remaining
        i += 1
    dets[:count] = torch.from_numpy(rows[:count]).to(dets)
    return torch.from_numpy(indices[:count].copy())


def nms_match(dets: torch.Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of rows of ``dets`` [R, 5] (box, score): a selected box, then those whose IoU reaches the threshold."""
    rows = _as_numpy(dets)
    order = torch.from_numpy(rows[:, 4].copy()).sort(descending=True, stable=True).indices.numpy()
    groups = []
    while len(order):
        first, rest = order[0], order[1:]
        near = _iou_with_rest(rows[first, :4], rows[rest, :4], 0) >= rows.dtype.type(iou_threshold)
        groups.append([int(first), *rest[near].tolist()])
        order = rest[~near]
    return groups


def bbox_overlaps(
    bboxes1: torch.Tensor, bboxes2: torch.Tensor, ious: torch.Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Write overlaps into ``ious`` ([R] if ``aligned``, else [R, S]); ``mode`` 0: IoU, 1: divide by the first area."""
    first = bboxes1 if aligned else bboxes1[:, None]
    second = bboxes2 if aligned else bboxes2[None]
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2]) + offset
    shared = sides.clamp(min=0).prod(-1)
    area = (first[..., 2:] - first[..., :2] + offset).prod(-1)
    if mode == 0:
        area = area + (second[..., 2:] - second[..., :2] + offset).prod(-1) - shared
    # With offset 1 an empty denominator is clamped to one pixel; with offset 0 it divides by zero, as in mmcv.
    ious.copy_(shared / area.clamp(min=offset))

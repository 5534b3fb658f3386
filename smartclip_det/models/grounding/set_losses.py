"""Losses of grounding heads: a set of boxes per sentence, possibly empty.

Shape letters: K sentences, Q queries, G targets of a sentence, h w cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from smartclip_det.core.errors import check_choice
from smartclip_det.models.grounding.fusion_head import GroundingOutput

#: Matching costs and loss weights of SimVG (arXiv 2409.17531); map and mask weights of HiVG (arXiv 2404.13400).
WEIGHTS = {
    "exists": 1.0,
    "bbox": 5.0,
    "giou": 2.0,
    "map_focal": 20.0,
    "map_dice": 2.0,
    "mask_focal": 20.0,
    "mask_dice": 2.0,
}


def match(
    output: GroundingOutput, targets: Sequence[Tensor], weights: Mapping[str, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimum-cost one-to-one assignment between the Q queries of each sentence and its G targets.

    Args:
        output: head output for K sentences.
        targets: ``[G, 4]`` relative cxcywh of each sentence.
        weights: costs ``exists`` (minus the probability), ``bbox`` (L1) and ``giou`` (minus GIoU).

    Returns:
        Indices of sentences, queries, and targets (numbered over all sentences), ``min(Q, G)`` per sentence. The device
        is synchronised twice whatever the number of sentences; with one query at most once.
    """
    boxes, counts = output.boxes, [len(t) for t in targets]
    device, queries, total = boxes.device, boxes.shape[1], sum(counts)
    if not total:
        empty = torch.zeros(0, dtype=torch.long, device=device)
        return empty, empty, empty
    every = torch.cat(list(targets))
    overlap = generalized_box_iou(
        box_convert(boxes.flatten(0, 1), "cxcywh", "xyxy"), box_convert(every, "cxcywh", "xyxy")
    )
    cost = (
        (
            weights["bbox"] * torch.cdist(boxes.flatten(0, 1), every, p=1)
            - weights["giou"] * overlap
            - weights["exists"] * output.exists.sigmoid().flatten()[:, None]
        )
        .detach()
        .float()
    )
    starts = [sum(counts[:k]) for k in range(len(counts))]
    with_targets = [k for k, n in enumerate(counts) if n]
    if queries == 1:
        nearest = torch.stack([cost[k, starts[k] : starts[k] + counts[k]].argmin() + starts[k] for k in with_targets])
        sentences = torch.arange(len(counts), device=device)
        if len(with_targets) < len(counts):
            sentences = torch.tensor(with_targets, device=device)
        return sentences, torch.zeros_like(nearest), nearest
    table = cost.view(len(counts), queries, total).cpu().numpy()
    triples = []
    for k in with_targets:
        rows, columns = linear_sum_assignment(table[k, :, starts[k] : starts[k] + counts[k]])
        triples += [(k, int(q), starts[k] + int(g)) for q, g in zip(rows, columns, strict=True)]
    indices = torch.tensor(triples, device=device)
    return indices[:, 0], indices[:, 1], indices[:, 2]


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """``[K]`` Dice loss of logits ``[K, ...]`` and targets in [0, 1], smoothed by 1."""
    probs, target = logits.sigmoid().flatten(1), target.flatten(1)
    return 1 - (2 * (probs * target).sum(dim=1) + 1) / (probs.sum(dim=1) + target.sum(dim=1) + 1)


def box_map(targets: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """``[K, h, w]`` fraction of each cell covered by a sentence's boxes (``[G, 4]`` relative cxcywh), at most 1."""
    height, width = size
    rows = []
    for boxes in targets:
        x1, y1, x2, y2 = box_convert(boxes, "cxcywh", "xyxy").unbind(dim=-1)
        spans = []
        for low, high, cells in ((y1, y2, height), (x1, x2, width)):
            start = torch.arange(cells, device=boxes.device)
            spans.append(
                (torch.minimum(high[:, None] * cells, start + 1) - torch.maximum(low[:, None] * cells, start)).clamp(
                    0, 1
                )
            )
        rows.append((spans[0][:, :, None] * spans[1][:, None, :]).sum(dim=0).clamp(max=1))
    return torch.stack(rows)


def grounding_losses(
    output: GroundingOutput,
    targets: Sequence[Tensor],
    weights: Mapping[str, float] | None = None,
    masks: Tensor | None = None,
) -> dict[str, Tensor]:
    """Losses of a batch, averaged over sentences (box losses: over targets).

    Args:
        output: head output.
        targets: K tensors ``[G, 4]`` of relative cxcywh; G = 0 for a sentence without a target. With more targets than
            queries, the queries are matched with the closest ones.
        weights: overrides of :data:`WEIGHTS`; 0 disables a term.
        masks: ``[K, S, S]`` bool for the mask branch.

    Returns:
        ``loss_exists``, ``loss_bbox``, ``loss_giou``, ``loss_map``, and ``loss_mask`` with a mask branch.

    Raises:
        UserError: for unknown weights.
    """
    for key in weights or {}:
        check_choice("loss weight", key, WEIGHTS)
    chosen = {**WEIGHTS, **(weights or {})}
    sentences, queries, columns = match(output, targets, chosen)
    exists = torch.zeros_like(output.exists)
    exists[sentences, queries] = 1
    losses = {"loss_exists": chosen["exists"] * functional.binary_cross_entropy_with_logits(output.exists, exists)}
    predicted = output.boxes[sentences, queries]
    truth = torch.cat(list(targets))[columns] if len(columns) else predicted
    count = max(1, len(predicted))
    overlap = generalized_box_iou_loss(box_convert(predicted, "cxcywh", "xyxy"), box_convert(truth, "cxcywh", "xyxy"))
    losses["loss_bbox"] = chosen["bbox"] * (predicted - truth).abs().sum() / count
    # Unused outputs enter with weight zero: DDP needs a gradient for every parameter on every process.
    losses["loss_bbox"] = losses["loss_bbox"] + 0 * (output.boxes.sum() + output.similarity.sum())
    losses["loss_giou"] = chosen["giou"] * overlap.sum() / count
    if chosen["map_focal"] or chosen["map_dice"]:
        map_target = box_map(targets, tuple(output.similarity.shape[-2:]))
        losses["loss_map"] = _dense_loss(output.similarity, map_target, chosen["map_focal"], chosen["map_dice"])
    if output.pixels is not None and masks is not None:
        small = functional.interpolate(masks.unsqueeze(1).float(), output.pixels.shape[-2:], mode="area")[:, 0]
        losses["loss_mask"] = _dense_loss(output.pixels, small, chosen["mask_focal"], chosen["mask_dice"])
    return losses


def _dense_loss(logits: Tensor, target: Tensor, focal: float, dice: float) -> Tensor:
    per_cell = sigmoid_focal_loss(logits, target, alpha=-1, gamma=2, reduction="mean")
    return focal * per_cell + dice * dice_loss(logits, target).mean()

"""Training-free detection: class-agnostic boxes, classified by the region vectors of an encoder.

Shape letters: R regions, C classes, N detections, D joint embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smartclip_det.core.errors import UserError
from smartclip_det.core.presence import with_presence
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank
from smartclip_det.models.selection import select_detections


@dataclass(frozen=True)
class RescoreOptions:
    """How class scores become detections.

    Attributes:
        objectness_power: exponent of a box's objectness in the score of each class.
        own_power: weight of the detector's own score in the geometric mean, for boxes that keep their class.
        score_threshold: only pairs with a higher score are kept.
        nms_iou: IoU above which the lower-scored box of a class is suppressed.
        max_detections: per image.
    """

    objectness_power: float = 0.5
    own_power: float = 0.5
    score_threshold: float = 0.0
    nms_iou: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        if self.objectness_power < 0 or not 0 <= self.own_power <= 1:
            raise UserError(
                "objectness_power must be at least 0 and own_power in [0, 1]; given "
                f"{self.objectness_power} and {self.own_power}."
            )


def class_scores(
    views: Sequence[Tensor], bank: TextBank, policy: ScoringPolicy, picture: Tensor | None = None
) -> Tensor:
    """``[R, C]`` class scores of region vectors, in [0, 1].

    Args:
        views: ``[R, D]`` vectors of each view; their cosines are averaged.
        bank: the vocabulary.
        policy: mask mode, text norm, calibration, activation, ``dense_temperature``, sigmoid reference and bias,
            and background (``zero``, ``text`` or ``text_ones``); presence.
        picture: ``[P, D]`` vectors of the full image, for presence.
    """
    return with_presence(_region_scores(views, bank, policy), picture, bank, policy, mask_mode=policy.dense_mode)


def _region_scores(views: Sequence[Tensor], bank: TextBank, policy: ScoringPolicy) -> Tensor:
    cosine = torch.stack([bank.cosine(v, policy, mask_mode=policy.dense_mode) for v in views]).mean(dim=0)
    background = torch.stack([_background(v, bank, policy) for v in views]).mean(dim=0)
    if policy.activation == "softmax":
        return (policy.dense_temperature * torch.cat([cosine, background], dim=1)).softmax(dim=1)[:, :-1]
    if policy.sigmoid_reference == "background":
        cosine = cosine - background
    return (policy.dense_temperature * cosine + policy.sigmoid_bias).sigmoid()


def _background(vectors: Tensor, bank: TextBank, policy: ScoringPolicy) -> Tensor:
    if policy.background == "zero":
        return vectors.new_zeros(len(vectors), 1, dtype=torch.float32)
    if policy.background == "learned" or bank.background is None:
        raise UserError("Rescoring has no learned background: use background='zero', 'text' or 'text_ones'.")
    mode = "off" if policy.background == "text_ones" else policy.dense_mode
    return bank.background.cosine(vectors, policy, mask_mode="hard" if mode == "shuffled" else mode)


def best_boxes(boxes: Tensor, objectness: Tensor, iou: float, limit: int) -> Tensor:
    """``[N]`` indices of the best boxes ``[R, 4]`` after class-agnostic NMS, best first."""
    rows, _, _ = select_detections(
        boxes, objectness.unsqueeze(1), score_threshold=float("-inf"), iou_threshold=iou, max_detections=limit
    )
    return rows


def detect_in_boxes(
    boxes: Tensor, objectness: Tensor, scores: Tensor, options: RescoreOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn class-agnostic boxes into detections.

    Args:
        boxes: ``[R, 4]`` xyxy.
        objectness: ``[R]`` in [0, 1].
        scores: ``[R, C]`` class scores.
        options: see :class:`RescoreOptions`.

    Returns:
        ``[N]`` box indices, ``[N]`` classes and ``[N]`` scores, best first.
    """
    weighted = scores * objectness.clamp(min=0).pow(options.objectness_power).unsqueeze(1)
    return select_detections(
        boxes,
        weighted,
        score_threshold=options.score_threshold,
        iou_threshold=options.nms_iou,
        max_detections=options.max_detections,
    )


def blend_own_scores(own: Tensor, labels: Tensor, scores: Tensor, options: RescoreOptions) -> Tensor:
    """``[R]`` geometric mean of the detector's scores and the class scores ``[R, C]`` of its labels ``[R]``."""
    label_scores = scores.gather(1, labels.unsqueeze(1)).squeeze(1)
    return own.clamp(min=0).pow(options.own_power) * label_scores.pow(1 - options.own_power)

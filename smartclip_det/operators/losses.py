"""Focal loss (arXiv 1708.02002): one value or gradient per score; ``mmcv.ops`` reduces and scales.

Logarithms are computed from logits, so a confidently wrong score keeps its loss; mmcv's compiled operator takes the
logarithm of a probability rounded to 0 or 1. MMDetection's own CPU version agrees with ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

__all__ = [
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_forward",
    "softmax_focal_loss_backward",
    "softmax_focal_loss_forward",
]


def _wide(scores: torch.Tensor) -> torch.Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _class_weights(weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor | float:
    """Weight [R] of each row's label; 1 for background, whose label is outside ``weight`` [C]."""
    if weight.numel() == 0:
        return 1.0
    inside = (target >= 0) & (target < len(weight))
    return torch.where(inside, _wide(weight)[target.clamp(0, len(weight) - 1)], 1.0)


def _positives(target: torch.Tensor, classes: int) -> torch.Tensor:
    return target[:, None] == torch.arange(classes, device=target.device)


def sigmoid_focal_loss_forward(
    input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, output: torch.Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of logits ``input`` [R, C] into ``output`` [R, C].

    ``target`` [R] holds labels; values outside 0..C - 1 are background. ``weight`` is [C] or empty.
    """
    logits = _wide(input)
    positive = -alpha * torch.sigmoid(-logits) ** gamma * F.logsigmoid(logits)
    negative = (alpha - 1) * torch.sigmoid(logits) ** gamma * F.logsigmoid(-logits)
    loss = torch.where(_positives(target, input.shape[1]), positive, negative)
    weights = _class_weights(weight, target)
    output.copy_(loss * (weights[:, None] if isinstance(weights, torch.Tensor) else weights))


def sigmoid_focal_loss_backward(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    grad_input: torch.Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the derivative of each loss with respect to its logit into ``grad_input`` [R, C]."""
    logits = _wide(input)
    p, q = torch.sigmoid(logits), torch.sigmoid(-logits)
    positive = -alpha * q**gamma * (q - gamma * p * F.logsigmoid(logits))
    negative = (alpha - 1) * p**gamma * (gamma * q * F.logsigmoid(-logits) - p)
    grad = torch.where(_positives(target, input.shape[1]), positive, negative)
    weights = _class_weights(weight, target)
    grad_input.copy_(grad * (weights[:, None] if isinstance(weights, torch.Tensor) else weights))


def _of_label(input_softmax: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Probability [R] of each row's label, clamped above zero for the logarithm."""
    probability = _wide(input_softmax).gather(1, target.clamp(min=0)[:, None])[:, 0]
    return probability.clamp(min=torch.finfo(torch.float32).tiny)


def softmax_focal_loss_forward(
    input_softmax: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    output: torch.Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the loss of probabilities ``input_softmax`` [R, C] into ``output`` [R]; 0 for negative labels."""
    p = _of_label(input_softmax, target)
    loss = -alpha * (1 - p) ** gamma * p.log() * _class_weights(weight, target)
    output.copy_(torch.where(target >= 0, loss, torch.zeros_like(loss)))


def softmax_focal_loss_backward(
    input_softmax: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    buff: torch.Tensor,
    grad_input: torch.Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the derivative of each row's loss with respect to its logits into ``grad_input`` [R, C]."""
    p = _of_label(input_softmax, target)
    # At probability 1 the slope is 0; the power would be 0 / 0 for gamma < 1.
    steep = torch.where(p < 1, gamma * (1 - p) ** (gamma - 1), torch.zeros_like(p)) if gamma else torch.zeros_like(p)
    slope = alpha * (steep * p * p.log() - (1 - p) ** gamma) * _class_weights(weight, target)
    slope = torch.where(target >= 0, slope, torch.zeros_like(slope))
    buff.copy_(slope)
    flags = _positives(target, input_softmax.shape[1]).to(slope.dtype)
    grad_input.copy_(slope[:, None] * (flags - _wide(input_softmax)))

"""Presence: whether a text occurs in an image at all. Region scores are multiplied by ``presence ** a``.

SAM 3 (arXiv 2511.16719) separates recognition (a presence token) from localisation (its queries). Here nothing is
trained: presence is the masked cosine of the whole image, mapped to a probability by a scale and an offset that
:func:`fit_sigmoid` fits on validation images. The presence of a text does not depend on the other texts.

Shape letters: P vectors of one image, R regions, C classes, D joint embedding, N pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank


def presence_cosine(picture: Tensor, bank: TextBank, policy: ScoringPolicy, *, mask_mode: str | None = None) -> Tensor:
    """``[C]`` cosine of an image with each class: one product of its vectors with the bank.

    Args:
        picture: ``[P, D]``: the pooled vector (P = 1), or the cells of the dense map. Each cell is weighted by its norm
            relative to the largest norm; the result is the largest weighted cosine.
        bank: the vocabulary.
        policy: provides ``text_norm`` and ``calibration``.
        mask_mode: overrides the policy's mask mode.

    Raises:
        UserError: if ``picture`` is empty or not 2-D.
    """
    if picture.dim() != 2 or not len(picture):
        raise UserError(f"picture must be [P, D] with at least one vector; given {list(picture.shape)}.")
    cosine = bank.cosine(picture, policy, mask_mode=mask_mode)
    length = picture.float().norm(dim=1, keepdim=True)
    longest = length.max()
    return (cosine * (length / torch.where(longest > 0, longest, torch.ones_like(longest)))).amax(dim=0)


def log_presence(picture: Tensor, bank: TextBank, policy: ScoringPolicy, *, mask_mode: str | None = None) -> Tensor:
    """``[C]`` log of each class's presence, times ``policy.presence``: at most 0.

    Arguments as for :func:`presence_cosine`; ``presence_scale`` and ``presence_bias`` of the policy apply as well.
    """
    return weighed_presence(presence_cosine(picture, bank, policy, mask_mode=mask_mode), policy)


def weighed_presence(cosines: Tensor, policy: ScoringPolicy) -> Tensor:
    """Log presence from presence cosines of any shape, times the exponent ``policy.presence``."""
    return policy.presence * functional.logsigmoid(policy.presence_scale * cosines + policy.presence_bias)


def with_presence(
    scores: Tensor, picture: Tensor | None, bank: TextBank, policy: ScoringPolicy, *, mask_mode: str | None = None
) -> Tensor:
    """``[R, C]`` scores times the presence of each class; unchanged if the policy's exponent is 0.

    Args:
        scores: ``[R, C]`` region scores, at least 0.
        picture: ``[P, D]`` vectors of the image; may be None only if the exponent is 0.
        bank: the vocabulary.
        policy: see :func:`log_presence`.
        mask_mode: overrides the policy's mask mode.

    Raises:
        UserError: if the exponent is not 0 and ``picture`` is None.
    """
    if not policy.presence:
        return scores
    if picture is None:
        raise UserError(f"presence={policy.presence} needs image-level vectors in addition to region vectors.")
    return scores * log_presence(picture, bank, policy, mask_mode=mask_mode).exp()


def fit_sigmoid(cosines: Tensor, present: Tensor, scale: float | None = None) -> tuple[float, float]:
    """Fit the scale and offset that map cosines to probabilities: logistic regression with Platt's smoothed targets.

    Args:
        cosines: ``[N]`` cosines of (image or region, text) pairs.
        present: ``[N]`` bool.
        scale: fixed scale, such as the learned scale of the towers; then only the offset is fitted.

    Returns:
        ``(scale, offset)`` that maximise the likelihood of ``sigmoid(scale * cosine + offset)``.

    Raises:
        UserError: without both positive and negative pairs, or for a scale that is not positive.
    """
    yes = int(present.sum())
    no = present.numel() - yes
    if not yes or not no:
        raise UserError(f"Calibration needs both positive and negative pairs; given {yes} positive, {no} negative.")
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise UserError(f"scale must be a positive number; given {scale}.")
    x = cosines.detach().double().cpu().flatten()
    target = torch.where(present.cpu().flatten(), (yes + 1) / (yes + 2), 1 / (no + 2)).double()
    mean, spread = x.mean(), x.std().clamp(min=1e-9)
    unit = (x - mean) / spread
    slope = 1.0 if scale is None else scale * float(spread)
    # Newton's method on standardised data, which is well conditioned.
    weights = torch.tensor([slope, math.log(yes / no)], dtype=torch.float64)
    columns = torch.stack([unit, torch.ones_like(unit)], dim=1)
    free = torch.tensor([scale is None, True])
    for _ in range(100):
        chance = (columns @ weights).sigmoid()
        gradient = (columns.t() @ (chance - target))[free]
        curvature = ((columns * (chance * (1 - chance)).unsqueeze(1)).t() @ columns)[free][:, free]
        step = torch.linalg.solve(curvature + 1e-9 * len(x) * torch.eye(len(gradient), dtype=torch.float64), gradient)
        # A Newton step longer than 1 overshoots where the sigmoid is flat.
        step = step * min(1.0, 1.0 / float(step.abs().max().clamp(min=1e-12)))
        weights[free] -= step
        if float(step.abs().max()) < 1e-10:
            break
    fitted = float(weights[0] / spread) if scale is None else scale
    return fitted, float(weights[1]) - fitted * float(mean)


def rising(fit: tuple[float, float]) -> tuple[float, float]:
    """Bound the scale of :func:`fit_sigmoid` from below by 1e-3.

    Cosines of towers that have learned nothing may fall where the object is present; a policy's scale is positive.
    """
    return max(fit[0], 1e-3), fit[1]

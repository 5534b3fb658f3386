"""Whether a text is in a picture at all, apart from where: ``presence(picture, text) ** a`` times a region's score.

SAM 3 (arXiv 2511.16719) decides with a presence token whether a thing is there, and with its queries where. Here
nothing is trained: presence is the masked cosine of the whole picture, made a probability by a scale and an offset that
:func:`fit_sigmoid` finds on validation pictures. A text's presence does not depend on the other texts.

Shape letters: P vectors of one picture, R regions, C classes, D joint embedding, N pairs.
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
    """``[C]`` how well a picture fits each class: one product of its vectors with the bank.

    Args:
        picture: ``[P, D]``: its pooled vector (P = 1), or the cells of its dense map. Cells are weighed by their length
            over that of the longest, and the largest weighted cosine counts.
        bank: the vocabulary.
        policy: its ``text_norm`` and ``calibration`` hold.
        mask_mode: another than the policy's.

    Raises:
        UserError: for a picture without vectors.
    """
    if picture.dim() != 2 or not len(picture):
        raise UserError(f"A picture is [P, D] with at least one vector; given {list(picture.shape)}.")
    cosine = bank.cosine(picture, policy, mask_mode=mask_mode)
    length = picture.float().norm(dim=1, keepdim=True)
    longest = length.max()
    return (cosine * (length / torch.where(longest > 0, longest, torch.ones_like(longest)))).amax(dim=0)


def log_presence(picture: Tensor, bank: TextBank, policy: ScoringPolicy, *, mask_mode: str | None = None) -> Tensor:
    """``[C]`` logarithm of the presence of each class to the power of ``policy.presence``: at most 0.

    Arguments as for :func:`presence_cosine`; ``presence_scale`` and ``presence_bias`` of the policy hold as well.
    """
    return weighed_presence(presence_cosine(picture, bank, policy, mask_mode=mask_mode), policy)


def weighed_presence(cosines: Tensor, policy: ScoringPolicy) -> Tensor:
    """Logarithm of the presence behind presence cosines of any shape, to the power of ``policy.presence``."""
    return policy.presence * functional.logsigmoid(policy.presence_scale * cosines + policy.presence_bias)


def with_presence(
    scores: Tensor, picture: Tensor | None, bank: TextBank, policy: ScoringPolicy, *, mask_mode: str | None = None
) -> Tensor:
    """``[R, C]`` scores times the presence of each class; the same tensor where the policy's exponent is 0.

    Args:
        scores: ``[R, C]`` of regions, at least 0.
        picture: ``[P, D]`` vectors of the regions' picture; None only where the exponent is 0.
        bank: the vocabulary.
        policy: see :func:`log_presence`.
        mask_mode: another than the policy's.

    Raises:
        UserError: where presence is asked for and no picture is given.
    """
    if not policy.presence:
        return scores
    if picture is None:
        raise UserError(f"presence={policy.presence} needs the picture's own vectors beside those of its regions.")
    return scores * log_presence(picture, bank, policy, mask_mode=mask_mode).exp()


def fit_sigmoid(cosines: Tensor, present: Tensor, scale: float | None = None) -> tuple[float, float]:
    """Scale and offset that make cosines probabilities: logistic regression, with Platt's targets against extremes.

    Args:
        cosines: ``[N]`` of pairs of picture (or region) and text.
        present: ``[N]`` bool.
        scale: a scale to keep, as that which towers learned; only the offset is then found.

    Returns:
        ``(scale, offset)`` with the largest likelihood of ``sigmoid(scale * cosine + offset)``.

    Raises:
        UserError: without pairs of both kinds, or for a scale that is not positive.
    """
    yes = int(present.sum())
    no = present.numel() - yes
    if not yes or not no:
        raise UserError(f"A calibration needs pairs that are there and pairs that are not; given {yes} and {no}.")
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise UserError(f"A scale must be a positive number; given {scale}.")
    x = cosines.detach().double().cpu().flatten()
    target = torch.where(present.cpu().flatten(), (yes + 1) / (yes + 2), 1 / (no + 2)).double()
    mean, spread = x.mean(), x.std().clamp(min=1e-9)
    unit = (x - mean) / spread
    slope = 1.0 if scale is None else scale * float(spread)
    # Newton's steps on unit data, where they are well conditioned.
    weights = torch.tensor([slope, math.log(yes / no)], dtype=torch.float64)
    columns = torch.stack([unit, torch.ones_like(unit)], dim=1)
    free = torch.tensor([scale is None, True])
    for _ in range(100):
        chance = (columns @ weights).sigmoid()
        gradient = (columns.t() @ (chance - target))[free]
        curvature = ((columns * (chance * (1 - chance)).unsqueeze(1)).t() @ columns)[free][:, free]
        step = torch.linalg.solve(curvature + 1e-9 * len(x) * torch.eye(len(gradient), dtype=torch.float64), gradient)
        # A step of more than 1 overshoots where the sigmoid is flat.
        step = step * min(1.0, 1.0 / float(step.abs().max().clamp(min=1e-12)))
        weights[free] -= step
        if float(step.abs().max()) < 1e-10:
            break
    found = float(weights[0] / spread) if scale is None else scale
    return found, float(weights[1]) - found * float(mean)

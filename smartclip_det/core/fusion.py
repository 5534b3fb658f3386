"""Fusion of detector scores with scores from the frozen dense map, with the presets of published systems.

Sources of the presets: F-VLM (arXiv 2209.15639, eq. 4), DITO (2310.00161), F-ViT from CLIPSelf (2310.01403),
ViLD (2104.13921, eq. 5), RegionCLIP (2112.09106), Detic (2201.02605), CORA (2303.13076), LaMI-DETR (2407.11335),
OWL-ViT (2205.06230).

Shape letters: R regions, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from smartclip_det.core.errors import UserError


@dataclass(frozen=True)
class Fusion:
    """Constants of a published fusion rule.

    Attributes:
        alpha: exponent of the dense score for base classes (and for background, if it is fused).
        beta: exponent of the dense score for novel classes.
        uses_objectness: whether the proposal's objectness is used.
        obj_pow: exponent of the objectness.
        sqrt: take the square root of the final product (geometric mean of score and objectness).
        renorm: divide by the sum over classes and background.
        background: ``fuse`` treats the background column as a base class, ``detector`` keeps the detector's value.
        novel_scale: multiplies novel scores.
    """

    alpha: float = 0.0
    beta: float = 0.0
    uses_objectness: bool = False
    obj_pow: float = 0.0
    sqrt: bool = False
    renorm: bool = False
    background: str = "fuse"
    novel_scale: float = 1.0


FUSIONS: dict[str, Fusion] = {
    "none": Fusion(),
    "f_vlm": Fusion(alpha=0.35, beta=0.65, renorm=True, background="detector"),
    "dito": Fusion(alpha=0.35, beta=0.65, renorm=True, background="detector", uses_objectness=True, obj_pow=3.0),
    "f_vit": Fusion(alpha=0.1, beta=0.8),
    "vild": Fusion(alpha=1 / 3, beta=2 / 3),
    "region_clip": Fusion(uses_objectness=True, obj_pow=1.0, sqrt=True),
    "detic": Fusion(uses_objectness=True, obj_pow=1.0, sqrt=True),
    "cora": Fusion(uses_objectness=True, obj_pow=1.0),
    "lami_detr": Fusion(alpha=0.0, beta=0.4, novel_scale=5.0),
    "lami_detr_vg": Fusion(alpha=0.0, beta=0.25, novel_scale=5.0),
    "owl": Fusion(),
}


def fuse(
    det: Tensor,
    vlm: Tensor | None,
    base_mask: Tensor,
    alpha: float,
    beta: float,
    obj: Tensor | None = None,
    obj_pow: float = 0.0,
    renorm: bool = False,
    novel_scale: float = 1.0,
    sqrt: bool = False,
    background: str = "fuse",
    total: Tensor | None = None,
) -> Tensor:
    """Weighted geometric mean of detector and dense scores.

    Base classes: ``det^(1-alpha) * vlm^alpha``; novel classes: ``det^(1-beta) * vlm^beta * novel_scale``. The result is
    optionally renormalised, multiplied by ``obj^obj_pow``, and square-rooted, in this order.

    Args:
        det: ``[R, C]`` or ``[R, C + 1]`` detector scores >= 0; an extra last column is background.
        vlm: scores of the same shape from the dense map, or None if both exponents are 0.
        base_mask: ``[C]`` True for base classes.
        alpha: exponent of ``vlm`` for base classes, in [0, 1].
        beta: exponent of ``vlm`` for novel classes, in [0, 1].
        obj: ``[R]`` objectness in [0, 1].
        obj_pow: exponent of ``obj``.
        renorm: divide by the sum over all columns.
        novel_scale: multiplies novel scores.
        sqrt: take the square root of the final product.
        background: ``fuse`` (as a base class) or ``detector`` (the detector's value).
        total: ``[R, 1]`` denominator for ``renorm`` when ``det`` holds only some of the columns; default: their sum.

    Returns:
        Scores with the shape of ``det``.

    Raises:
        UserError: for mismatched shapes, or if ``vlm`` or ``obj`` is needed but missing.
    """
    classes = base_mask.shape[0]
    has_background = det.shape[-1] == classes + 1
    if det.shape[-1] not in (classes, classes + 1):
        raise UserError(f"det has {det.shape[-1]} columns for {classes} classes (with or without background).")
    if vlm is None and (alpha or beta):
        raise UserError("This fusion needs dense scores (vlm) but none were given.")
    if vlm is not None and vlm.shape != det.shape:
        raise UserError(f"vlm must have the shape of det {list(det.shape)}; given {list(vlm.shape)}.")
    if obj is None and obj_pow:
        raise UserError("This fusion needs objectness but none was given.")
    # torch.where with two Python scalars would return fp32 whatever the dtype of the scores.
    exponent = torch.where(base_mask, det.new_tensor(alpha), det.new_tensor(beta))
    factor = torch.where(base_mask, det.new_tensor(1.0), det.new_tensor(novel_scale))
    if has_background:
        background_exponent = alpha if background == "fuse" else 0.0
        exponent = torch.cat([exponent, exponent.new_tensor([background_exponent])])
        factor = torch.cat([factor, factor.new_ones(1)])
    scores = det if vlm is None else det.pow(1 - exponent) * vlm.pow(exponent)
    scores = scores * factor
    if renorm:
        denominator = scores.sum(dim=-1, keepdim=True) if total is None else total
        scores = scores / denominator.clamp(min=torch.finfo(scores.dtype).tiny)
    if obj is not None and obj_pow:
        scores = scores * obj.pow(obj_pow).unsqueeze(-1)
    return scores.sqrt() if sqrt else scores


def fuse_named(
    name: str,
    det: Tensor,
    vlm: Tensor | None,
    base_mask: Tensor,
    obj: Tensor | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    total: Tensor | None = None,
) -> Tensor:
    """:func:`fuse` with the constants of a preset; ``alpha`` and ``beta`` override the preset if given."""
    preset = FUSIONS[name]
    return fuse(
        det,
        vlm,
        base_mask,
        preset.alpha if alpha is None else alpha,
        preset.beta if beta is None else beta,
        obj=obj if preset.uses_objectness else None,
        obj_pow=preset.obj_pow,
        renorm=preset.renorm,
        novel_scale=preset.novel_scale,
        sqrt=preset.sqrt,
        background=preset.background,
        total=total,
    )


def owl_logits(cosine: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """OWL-ViT class logits (arXiv 2205.06230): ``(cos + shift(x)) * (elu(scale(x)) + 1)``.

    Args:
        cosine: ``[R, C]``.
        shift: ``[R]`` learned shift of each token.
        scale: ``[R]`` learned raw scale of each token.
    """
    return (cosine + shift.unsqueeze(-1)) * (functional.elu(scale).unsqueeze(-1) + 1)

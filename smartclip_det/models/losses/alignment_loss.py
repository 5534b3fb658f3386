"""Alignment loss over all processes (SmartCLIP, arXiv 2507.22264, section 4.2; CLIP with ``mask_mode='off'``).

Shape letters: B images of this process, Bg images of all processes, D joint embedding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from smartclip_det.core.contrastive import SCALE, TILE, hard_concrete, sigmoid_strip, softmax_strip, sparsity_loss
from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.similarity import TEXT_NORMS, binary_masks, straight_through
from smartclip_det.models.losses.gather import gather_rows, logsumexp_over_processes, world_size
from smartclip_det.utils.scalar_parameters import keep_scalars_in_files, scalar_parameter

#: Bounds of the logarithm of a learned scale, as in CLIP (arXiv 2103.00020): scales from 1 to 100.
SCALE_BOUNDS = (0.0, math.log(100.0))
TRAINED_MASKS = ("hard", "soft", "hard_concrete", "off")
FORMS = ("softmax", "sigmoid")


@torch.no_grad()
def bound_scale_(logit_scale: Tensor) -> None:
    """Clamp the logarithm of a learned scale to ``SCALE_BOUNDS``, in place and without synchronising."""
    logit_scale.clamp_(*SCALE_BOUNDS)


def bound_scale(logit_scale: Tensor) -> float | None:
    """:func:`bound_scale_`, reporting a change.

    Returns:
        The previous value if it was out of bounds; None if nothing changed.
    """
    before = float(logit_scale.detach())
    bound_scale_(logit_scale)
    # The upper bound is not representable in float32.
    return None if SCALE_BOUNDS[0] <= before <= SCALE_BOUNDS[1] + 1e-6 else before


class AlignmentLoss(nn.Module):
    """Each process scores its own images against the captions of all processes, once.

    The terms are weighted so that DDP's average over processes is the loss of the joint batch, even if the processes
    have batches of different sizes.

    Args:
        mask_mode: ``hard`` (straight-through, as published), ``soft``, ``hard_concrete``, or ``off`` for CLIP.
        modular: True: each caption masks every image with its own mask. False: each image is masked only with the
            mask of its own caption (the paper's ablation: it leaks the identity of the pair).
        scale: scale of cosines: a number (100 in the recipe), or ``learned``.
        alignment_weight: weight of the sum of both cross-entropies, or of the sigmoid loss.
        sparsity_weight: weight of the mean mask.
        form: ``softmax``, or ``sigmoid`` (SigLIP; with a learned bias that starts at -10).
        label_smoothing: for the softmax form (0.1 in Long-CLIP's release).
        text_norm: ``masked`` masks the text as well (as in MoVA).
        tile: logits computed at a time; a larger strip is recomputed in the backward pass.
    """

    def __init__(
        self,
        mask_mode: str = "hard",
        modular: bool = True,
        scale: float | str = SCALE,
        alignment_weight: float = 10.0,
        sparsity_weight: float = 2.0,
        form: str = "softmax",
        label_smoothing: float = 0.0,
        text_norm: str = "full",
        tile: int = TILE,
    ) -> None:
        super().__init__()
        self.mask_mode = check_choice("mask_mode", mask_mode, TRAINED_MASKS)
        self.form = check_choice("form", form, FORMS)
        self.text_norm = check_choice("text_norm", text_norm, TEXT_NORMS)
        if isinstance(scale, str) and scale != "learned":
            raise UserError(f"scale must be a number or 'learned'; given {scale!r}.")
        if not 0 <= label_smoothing < 1 or (label_smoothing and form == "sigmoid"):
            raise UserError(f"label_smoothing must be in [0, 1) and needs form='softmax'; given {label_smoothing}.")
        self.modular, self.scale, self.tile, self.label_smoothing = modular, scale, tile, label_smoothing
        self.alignment_weight, self.sparsity_weight = alignment_weight, sparsity_weight
        self.bias = scalar_parameter(-10.0) if form == "sigmoid" else None
        keep_scalars_in_files(self, "bias")

    @property
    def learns_scale(self) -> bool:
        """Whether the towers' ``logit_scale`` is trained."""
        return self.scale == "learned"

    def masks(self, mask_logits: Tensor | None) -> Tensor | None:
        """``[B, D]`` masks for the mask mode, with gradients to the logits; None for ``off``."""
        if self.mask_mode == "off":
            return None
        if mask_logits is None:
            raise UserError(f"mask_mode={self.mask_mode!r} needs towers with a mask network (mask_layers > 0).")
        logits = mask_logits.float()
        if self.mask_mode == "hard_concrete":
            return hard_concrete(logits, torch.rand_like(logits) if self.training else None)
        return straight_through(logits.sigmoid()) if self.mask_mode == "hard" else logits.sigmoid()

    def forward(
        self, image_embeds: Tensor, text_embeds: Tensor, mask_logits: Tensor | None, logit_scale: Tensor
    ) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            image_embeds: ``[B, D]`` projected, not normalised.
            text_embeds: ``[B, D]``, of the caption of each image.
            mask_logits: ``[B, D]``, or None.
            logit_scale: log scale, a single number, used if ``scale='learned'`` (at most log 100, as in CLIP).

        Returns:
            ``loss_sidm`` (same image, different masks: over the captions of each image) and ``loss_dism`` (different
            images, same mask: over the images of each caption), or ``loss_sigmoid``; with masks ``loss_sparsity``;
            ``mask_density`` and ``scale`` for logging.
        """
        masks = self.masks(mask_logits)
        images = image_embeds.float() if masks is None or self.modular else image_embeds.float() * masks
        exchanged = [text_embeds.float()] + ([masks] if masks is not None and self.modular else [])
        gathered, first = gather_rows(*exchanged)
        texts, all_masks = gathered[0], gathered[1] if len(gathered) > 1 else None
        scale: float | Tensor = float(SCALE if self.learns_scale else self.scale)
        if self.learns_scale:
            # Training clamps the parameter after each step (bound_scale); this covers weights that never took a step.
            scale = logit_scale.float().reshape(()).clamp(max=SCALE_BOUNDS[1]).exp()
        # Mean over the joint batch, times the number of processes that DDP divides by.
        share = world_size() / len(texts)
        if self.form == "sigmoid":
            assert self.bias is not None
            strip_sum = sigmoid_strip(
                images,
                texts,
                all_masks,
                first,
                scale=scale,
                bias=self.bias.reshape(()),
                text_norm=self.text_norm,
                tile=self.tile,
            )
            losses = {"loss_sigmoid": self.alignment_weight * share * strip_sum}
        else:
            losses = self._softmax(images, texts, all_masks, first, scale, share)
        if masks is not None:
            losses["loss_sparsity"] = self.sparsity_weight * share * len(masks) * sparsity_loss(masks)
            losses["mask_density"] = binary_masks(masks.detach()).mean()
        losses["scale"] = scale.detach() if isinstance(scale, Tensor) else images.new_full((), scale)
        return losses

    def _softmax(
        self, images: Tensor, texts: Tensor, masks: Tensor | None, first: int, scale: float | Tensor, share: float
    ) -> dict[str, Tensor]:
        """Both cross-entropies, over the rows and columns of this process."""
        strip = softmax_strip(images, texts, masks, first, scale=scale, text_norm=self.text_norm, tile=self.tile)
        columns = logsumexp_over_processes(strip.columns)[first : first + len(images)]
        matched = (1 - self.label_smoothing) * strip.matched.sum()
        # Label smoothing uses the mean of all logits, which is the same for rows and columns.
        matched = matched + self.label_smoothing * strip.total / len(texts)
        weight = self.alignment_weight * share
        return {"loss_sidm": weight * (strip.rows.sum() - matched), "loss_dism": weight * (columns.sum() - matched)}

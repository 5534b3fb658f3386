"""The alignment loss over all processes (SmartCLIP, arXiv 2507.22264, section 4.2; CLIP with ``mask_mode='off'``).

Shape letters: B images of this process, Bg images of all processes, D joint embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smartclip_det.core.contrastive import SCALE, alignment_logits, alignment_losses, sparsity_loss
from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.similarity import straight_through
from smartclip_det.models.losses.gather import gather_rows, world_size

TRAINED_MASKS = ("hard", "soft", "off")


class AlignmentLoss(nn.Module):
    """Each process scores its own images against all captions and its own captions against all images.

    The terms are weighted so that the average over processes that DDP takes is the loss of the joint batch, also
    when processes hold batches of different size.
    """

    def __init__(
        self, mask_mode: str = "hard", modular: bool = True, scale: float | str = SCALE,
        alignment_weight: float = 10.0, sparsity_weight: float = 2.0,
    ) -> None:  # fmt: skip
        """Build.

        Args:
            mask_mode: ``hard`` (straight-through, the published one), ``soft``, or ``off`` for CLIP.
            modular: see ``contrastive.alignment_logits``.
            scale: factor on cosines: a number (the recipe's 100), or ``learned``.
            alignment_weight: of the sum of both cross-entropies.
            sparsity_weight: of the mean mask.
        """
        super().__init__()
        self.mask_mode = check_choice("mask_mode", mask_mode, TRAINED_MASKS)
        if isinstance(scale, str) and scale != "learned":
            raise UserError(f"scale must be a number or 'learned'; given {scale!r}.")
        self.modular, self.scale = modular, scale
        self.alignment_weight, self.sparsity_weight = alignment_weight, sparsity_weight

    @property
    def learns_scale(self) -> bool:
        """Whether the towers' ``logit_scale`` is trained."""
        return self.scale == "learned"

    def masks(self, mask_logits: Tensor | None) -> Tensor | None:
        """``[B, D]`` masks of the mode, with gradients to the logits; None for ``off``."""
        if self.mask_mode == "off":
            return None
        if mask_logits is None:
            raise UserError(f"mask_mode={self.mask_mode!r} needs towers with a mask network (mask_layers > 0).")
        probs = mask_logits.float().sigmoid()
        return straight_through(probs) if self.mask_mode == "hard" else probs

    def forward(
        self, image_embeds: Tensor, text_embeds: Tensor, mask_logits: Tensor | None, logit_scale: Tensor
    ) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            image_embeds: ``[B, D]`` projected, not normalised.
            text_embeds: ``[B, D]``, of the caption of each image.
            mask_logits: ``[B, D]``, or None.
            logit_scale: scalar logarithm, used where ``scale='learned'`` (at most 100, as in CLIP).

        Returns:
            ``loss_sidm``, ``loss_dism``, and with masks ``loss_sparsity``; ``mask_density`` and ``scale`` to log.
        """
        masks = self.masks(mask_logits)
        own = [image_embeds.float(), text_embeds.float()] + ([] if masks is None else [masks])
        gathered, first = gather_rows(*own)
        images, texts = gathered[:2]
        all_masks = gathered[2] if masks is not None else None
        scale = logit_scale.float().exp().clamp(max=100.0) if self.learns_scale else float(self.scale)
        rows = alignment_logits(own[0], texts, all_masks if self.modular else masks, scale=scale, modular=self.modular)
        columns = alignment_logits(
            images, own[1], masks if self.modular else all_masks, scale=scale, modular=self.modular
        )
        targets = first + torch.arange(len(own[0]), device=own[0].device)
        terms = alignment_losses(rows, columns.t(), targets)
        share = len(own[0]) * world_size() / len(images)
        losses = {k: self.alignment_weight * share * v for k, v in terms.items()}
        if masks is not None:
            losses["loss_sparsity"] = self.sparsity_weight * share * sparsity_loss(masks)
            losses["mask_density"] = masks.detach().mean()
        losses["scale"] = torch.as_tensor(scale, device=images.device).detach()
        return losses

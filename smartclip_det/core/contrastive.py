"""Mathematics of the alignment loss (SmartCLIP, arXiv 2507.22264, section 4.2).

Shape letters: B images (or captions), D joint embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from smartclip_det.core.errors import UserError
from smartclip_det.core.similarity import masked_cosine

#: The released recipe uses a constant scale; ``logit_scale`` exists in its checkpoints but is not used.
SCALE = 100.0


def alignment_logits(
    image_embeds: Tensor, text_embeds: Tensor, masks: Tensor | None, *, scale: float | Tensor = SCALE,
    modular: bool = True,
) -> Tensor:  # fmt: skip
    """``[Bi, Bt]`` scaled similarities of images (rows) and captions (columns).

    Args:
        image_embeds: ``[Bi, D]`` projected image vectors, not normalised.
        text_embeds: ``[Bt, D]`` text vectors.
        masks: ``[Bt, D]`` caption masks, or None for plain CLIP.
        scale: factor on the cosine.
        modular: True lets each caption mask every image by its own mask. False masks each image by the
            mask of its own caption only (the paper's ablation: it leaks the identity of the pair).
    """
    if modular or masks is None:
        return scale * masked_cosine(image_embeds, text_embeds, masks)
    if image_embeds.shape != masks.shape:
        raise UserError("modular=False pairs image i with mask i: both need one shape.")
    return scale * masked_cosine(image_embeds * masks, text_embeds)


def alignment_losses(
    image_logits: Tensor, text_logits: Tensor | None = None, targets: Tensor | None = None
) -> dict[str, Tensor]:
    """The two terms of the alignment loss; the recipe adds them (no averaging).

    Args:
        image_logits: ``[B, Bg]``: B images (rows) against Bg captions.
        text_logits: ``[B, Bg]``: B captions (rows) against Bg images; default: the transpose of a square
            ``image_logits``.
        targets: ``[B]`` matching column of each row, the same for both blocks (local rows of a gathered batch);
            default the diagonal.

    Returns:
        ``loss_sidm`` (same image, different masks: over the captions of each image) and ``loss_dism``
        (different images, same mask: over the images of each caption), both scalar.

    Raises:
        UserError: when the transpose is asked for and is not the block that ``targets`` speak of.
    """
    if text_logits is None:
        if image_logits.shape[0] != image_logits.shape[1] or targets is not None:
            raise UserError("Blocks that are not square, or come with targets, need text_logits of their own.")
        text_logits = image_logits.t()
    if targets is None:
        targets = torch.arange(image_logits.shape[0], device=image_logits.device)
    return {
        "loss_sidm": functional.cross_entropy(image_logits, targets),
        "loss_dism": functional.cross_entropy(text_logits, targets),
    }


def sparsity_loss(masks: Tensor) -> Tensor:
    """Mean magnitude of ``[B, D]`` masks: the share of dimensions that a caption keeps."""
    return masks.abs().mean()

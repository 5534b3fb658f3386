"""Region-caption contrast: dense features of a box learn to match its text under the text's own mask.

The region term of RegionCLIP (arXiv 2112.09106) and FG-CLIP (2505.05071) with SmartCLIP's masked cosine.

Shape letters: B images, R regions, U different texts, D joint embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from smartclip_det.core.contrastive import alignment_logits
from smartclip_det.core.errors import UserError
from smartclip_det.models.regions import pool_regions


class RegionContrast(nn.Module):
    """``weight`` times the cross-entropy of each region over the different region texts of this process's batch."""

    def __init__(self, weight: float = 1.0, images: int = 64, scale: float = 50.0) -> None:
        """Build.

        Args:
            weight: of the loss.
            images: images of each batch that take part, at most.
            scale: factor on cosines.
        """
        super().__init__()
        if images < 1 or scale <= 0:
            raise UserError(f"RegionContrast needs images >= 1 and scale > 0; given {images} and {scale}.")
        self.weight, self.images, self.scale = weight, images, scale

    def texts(self, region_texts: Sequence[Sequence[str]]) -> list[str]:
        """The U different texts of the images that take part, in order."""
        return list(dict.fromkeys(t for mine in region_texts[: self.images] for t in mine))

    @staticmethod
    def nothing(dense: Tensor) -> dict[str, Tensor]:
        """What a batch without regions gives: a loss of 0 that still reaches the tower, for DDP."""
        return {"loss_region": 0.0 * dense.sum(), "region_accuracy": dense.new_zeros(())}

    def forward(
        self,
        dense: Tensor,
        boxes: Sequence[Sequence[Sequence[float]]],
        region_texts: Sequence[Sequence[str]],
        embeds: Tensor,
        masks: Tensor | None,
        patch_size: int,
    ) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            dense: ``[B, D, h, w]`` with gradients.
            boxes: for each image its boxes, xyxy pixels of the input.
            region_texts: for each image the texts of its boxes.
            embeds: ``[U, D]`` of :meth:`texts`.
            masks: ``[U, D]``, or None.
            patch_size: pixels of a cell.

        Returns:
            ``loss_region``, and ``region_accuracy`` to log. The loss is 0 where there is nothing to tell apart.
        """
        index = {t: n for n, t in enumerate(self.texts(region_texts))}
        rows = [
            ([float(i), *box], index[text])
            for i, (mine, told) in enumerate(zip(boxes[: self.images], region_texts[: self.images], strict=True))
            for box, text in zip(mine, told, strict=True)
        ]
        if not rows:
            return self.nothing(dense)
        vectors = pool_regions(dense, torch.tensor([r for r, _ in rows], device=dense.device), patch_size)
        target = torch.tensor([n for _, n in rows], device=dense.device)
        logits = alignment_logits(vectors, embeds, masks, scale=self.scale)
        right = (logits.detach().argmax(dim=1) == target).float().mean()
        return {"loss_region": self.weight * functional.cross_entropy(logits, target), "region_accuracy": right}

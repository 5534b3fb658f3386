"""Region-caption contrast: dense features of a box are matched with its text under the text's own mask.

The region loss of RegionCLIP (arXiv 2112.09106) and FG-CLIP (2505.05071) with SmartCLIP's masked cosine.

Shape letters: B images, R regions, U unique texts, D joint embedding.
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
    """``weight`` times the cross-entropy of each region over the unique region texts of this process's batch.

    Args:
        weight: weight of the loss.
        images: maximum number of images per batch.
        scale: multiplies cosines.
    """

    def __init__(self, weight: float = 1.0, images: int = 64, scale: float = 50.0) -> None:
        super().__init__()
        if images < 1 or scale <= 0:
            raise UserError(f"RegionContrast needs images >= 1 and scale > 0; given {images} and {scale}.")
        self.weight, self.images, self.scale = weight, images, scale

    def texts(self, region_texts: Sequence[Sequence[str]]) -> list[str]:
        """The U unique texts of the images used, in order."""
        return list(dict.fromkeys(t for group in region_texts[: self.images] for t in group))

    @staticmethod
    def nothing(dense: Tensor) -> dict[str, Tensor]:
        """Result for a batch without regions: a loss of 0 that is connected to the tower, for DDP."""
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
            boxes: boxes of each image, xyxy pixels of the input.
            region_texts: texts of the boxes of each image.
            embeds: ``[U, D]`` of :meth:`texts`.
            masks: ``[U, D]``, or None.
            patch_size: pixels per cell.

        Returns:
            ``loss_region``, and ``region_accuracy`` for logging. The loss is 0 if all regions have the same text.
        """
        index = {t: n for n, t in enumerate(self.texts(region_texts))}
        rows = [
            ([float(i), *box], index[text])
            for i, (group, texts) in enumerate(zip(boxes[: self.images], region_texts[: self.images], strict=True))
            for box, text in zip(group, texts, strict=True)
        ]
        if not rows:
            return self.nothing(dense)
        vectors = pool_regions(dense, torch.tensor([r for r, _ in rows], device=dense.device), patch_size)
        target = torch.tensor([n for _, n in rows], device=dense.device)
        logits = alignment_logits(vectors, embeds, masks, scale=self.scale)
        accuracy = (logits.detach().argmax(dim=1) == target).float().mean()
        return {"loss_region": self.weight * functional.cross_entropy(logits, target), "region_accuracy": accuracy}

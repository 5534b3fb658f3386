"""Bank rows from example images (image-conditioned queries; OWL-ViT, arXiv 2205.06230, section 4.4).

Image embeddings are close to each other and far from text embeddings: the cosine of any two regions exceeds the cosine
of a region with the text that names it, so a plain mean of regions would outscore every text on every region. The
difference between a region and its full image cancels what they share: its cosine is near 0 for other objects, and
comparable to text cosines for matching ones.

Shape letters: N example images, T texts of a class, D joint embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from smartclip_det.core.errors import UserError
from smartclip_det.core.similarity import binary_masks

#: If the difference of the two unit vectors is shorter than this, box and full image show the same content.
SAME = 0.05


def picture_row(
    boxes: Tensor, full_images: Tensor, masks: Tensor | None = None, *, contrast: bool = True
) -> tuple[Tensor, Tensor]:
    """Compute the row of one class.

    Args:
        boxes: ``[N, D]`` vectors of the boxes.
        full_images: ``[N, D]`` vectors of the full images.
        masks: ``[T, D]`` masks of the texts of a class; None for a mask of ones.
        contrast: subtract the vector of the full image. A box that shows the same as its full image keeps its own
            vector.

    Returns:
        ``[D]`` normalised vector, and ``[D]`` binary mask: the dimensions kept by at least half of ``masks``.

    Raises:
        UserError: if the mean vector is zero or not finite.
    """
    own = functional.normalize(boxes.float(), dim=1)
    if contrast:
        difference = own - functional.normalize(full_images.float(), dim=1)
        length = difference.norm(dim=1, keepdim=True)
        own = torch.where(length > SAME, difference / length.clamp(min=1e-12), own)
    mean = own.mean(dim=0)
    if not bool(torch.isfinite(mean).all()) or float(mean.norm()) < 1e-6:
        raise UserError(
            "The vectors of the example boxes average to zero or are not finite, so there is nothing to search for. "
            "Use other boxes, or fewer that show the same object."
        )
    mask = torch.ones_like(mean) if masks is None else binary_masks(masks.float().mean(dim=0))
    return functional.normalize(mean, dim=0), mask

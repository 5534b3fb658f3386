"""A row of a bank from pictures (one-shot queries; OWL-ViT, arXiv 2205.06230, section 4.4).

Vectors of pictures are near to each other and far from those of texts: the cosine of any two regions is above that of a
region with the text that names it. A plain mean of regions would outscore every text, on every region. What sets a
region apart from its picture has no part of what they share: cosines with it are near 0 for other things, and of the
size of texts' cosines for its own.

Shape letters: N pictures, T texts of a class, D joint embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from smartclip_det.core.errors import UserError
from smartclip_det.core.similarity import binary_masks

#: Length of the difference of two unit vectors under which a box shows what its whole picture shows.
SAME = 0.05


def picture_row(
    boxes: Tensor, wholes: Tensor, masks: Tensor | None = None, *, contrast: bool = True
) -> tuple[Tensor, Tensor]:
    """The row of one class.

    Args:
        boxes: ``[N, D]`` vectors of the boxes.
        wholes: ``[N, D]`` vectors of the whole pictures.
        masks: ``[T, D]`` masks of a class's texts; None for a mask of ones.
        contrast: whether the whole pictures are taken off. A box that shows what its whole picture shows keeps its own
            vector.

    Returns:
        ``[D]`` normalised vector, and ``[D]`` binary mask: the dimensions that at least half of ``masks`` keep.

    Raises:
        UserError: for vectors without a direction.
    """
    own = functional.normalize(boxes.float(), dim=1)
    if contrast:
        apart = own - functional.normalize(wholes.float(), dim=1)
        length = apart.norm(dim=1, keepdim=True)
        own = torch.where(length > SAME, apart / length.clamp(min=1e-12), own)
    mean = own.mean(dim=0)
    if not bool(torch.isfinite(mean).all()) or float(mean.norm()) < 1e-6:
        raise UserError("The pictures' boxes have no direction in common: they show nothing that could be looked for.")
    mask = torch.ones_like(mean) if masks is None else binary_masks(masks.float().mean(dim=0))
    return functional.normalize(mean, dim=0), mask

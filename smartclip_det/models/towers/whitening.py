"""Data-dependent initialisation of the patch embedding, for towers trained from scratch.

Neighbouring pixels are correlated, so a random patch embedding mostly encodes the mean colour of a patch. Projecting on
the principal components of patches, each scaled to unit variance, encodes contours from the first step (the whitening
layer of fast CIFAR training, e.g. arXiv 2404.00498, with the size of a patch).

Shape letters: B images, W tower width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smartclip_det.core.errors import UserError
from smartclip_det.models.towers.vision_transformer import VisionTransformer


@torch.no_grad()
def whiten_patch_embedding(
    tower: VisionTransformer, images: Tensor, *, eps: float = 1e-2, patches: int = 40_000, seed: int = 0
) -> None:
    """Replace ``conv1`` by a whitening transform of patches, followed by a random rotation.

    Args:
        tower: modified in place.
        images: ``[B, 3, H, W]`` normalised training images; sides are multiples of the patch size.
        eps: added to the variance of each component, which damps noise.
        patches: maximum number of patches, drawn at random.
        seed: seed of the draw and the rotation.

    Raises:
        UserError: for fewer patches than components.
    """
    if not isinstance(tower, VisionTransformer):
        raise UserError(
            f"Whitening needs a transformer with a patch embedding; a {type(tower).__name__} has none. Remove "
            "WhitenPatchesHook from custom_hooks."
        )
    p, width = tower.patch_size, tower.width
    generator = torch.Generator().manual_seed(seed)
    cells = images.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * p * p).float().cpu()
    cells = cells[torch.randperm(len(cells), generator=generator)[:patches]]
    count = min(width, cells.shape[1])
    if len(cells) < count:
        raise UserError(f"Whitening {count} components needs at least as many patches; given {len(cells)}.")
    variance, axes = torch.linalg.eigh(torch.cov(cells.t()))
    rows = (axes.flip(1)[:, :count] / (variance.flip(0)[:count].clamp(min=0) + eps).sqrt()).t()
    padded = torch.zeros(width, cells.shape[1])
    padded[:count] = rows
    rotation, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    tower.conv1.weight.copy_((rotation @ padded).view_as(tower.conv1.weight))

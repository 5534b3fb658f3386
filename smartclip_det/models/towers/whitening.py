"""A data-dependent start for towers that are trained from nothing.

Neighbouring pixels are alike, so a random patch embedding sees a patch's mean colour and little else. Projecting on
the principal components of patches, each scaled to unit variance, shows contours from the first step (the whitening
layer of fast CIFAR training, e.g. arXiv 2404.00498, at the size of a patch).

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
    """Replace ``conv1`` by the whitening of patches, turned by a random rotation.

    Args:
        tower: changed in place.
        images: ``[B, 3, H, W]`` normalised training images, whole patches wide and high.
        eps: variance added to each component, which keeps noise small.
        patches: patches used at most, drawn by the seed.
        seed: of the draw and the rotation.

    Raises:
        UserError: when there are fewer patches than components.
    """
    if not isinstance(tower, VisionTransformer):
        raise UserError(
            f"Whitening starts the patch embedding of a transformer; a {type(tower).__name__} has none. Drop "
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

"""Region self-distillation: dense features of a region learn from the pooled vector of its crop (CLIPSelf, 2310.01403).

Image-text alignment trains only the pooled vector, so the patch vectors of a ViT localise poorly. The teacher is the
pooled vector of a crop, without gradient; the student is RoIAlign on the dense map of the full image.

Shape letters: B images, R regions, D joint embedding, S side of the input in pixels.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import roi_align

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.models.regions import pool_regions
from smartclip_det.models.towers.local_tower import LocalTower
from smartclip_det.models.towers.vision_transformer import VisionTransformer

TEACHERS = ("initial", "current")


class RegionDistillation(nn.Module):
    """``weight * mean(1 - cos(dense region, crop))`` over random regions of some of the images.

    Args:
        weight: weight of the loss.
        regions: random squares per image.
        images: maximum number of images per batch.
        min_side: smallest side of a region relative to the image side.
        max_side: largest side.
        teacher: ``initial``: the frozen initial tower, as in CLIPSelf, which preserves what it knows about crops;
            ``current``: the tower being trained.
    """

    def __init__(
        self,
        weight: float = 1.0,
        regions: int = 1,
        images: int = 64,
        min_side: float = 0.2,
        max_side: float = 0.7,
        teacher: str = "initial",
    ) -> None:
        super().__init__()
        if not 0 < min_side <= max_side <= 1:
            raise UserError(f"Regions need 0 < min_side <= max_side <= 1; given {min_side} and {max_side}.")
        self.weight, self.regions, self.images = weight, regions, images
        self.min_side, self.max_side = min_side, max_side
        self.teacher = check_choice("teacher", teacher, TEACHERS)
        # In a list, so that it is not a submodule and neither trained nor saved. A resumed run rebuilds it from the
        # same config.
        self._initial: list[VisionTransformer | LocalTower] = []

    def remember(self, tower: VisionTransformer | LocalTower) -> None:
        """Store a frozen copy of the tower if the teacher is ``initial``."""
        if self.teacher == "initial":
            self._initial = [copy.deepcopy(tower).requires_grad_(False).eval()]

    def forward(self, tower: VisionTransformer | LocalTower, inputs: Tensor, dense: Tensor) -> dict[str, Tensor]:
        """Compare regions of the dense map with crops of the input.

        Args:
            tower: the trained tower.
            inputs: ``[B, 3, S, S]`` normalised pixels.
            dense: ``[B, D, h, w]`` dense map of the inputs, with gradients.

        Returns:
            ``loss_distillation``, and ``region_cosine`` for logging.
        """
        inputs, dense = inputs[: self.images], dense[: self.images]
        rois = self.random_regions(len(inputs), inputs.shape[-1], inputs.device)
        teacher = self._initial[0].to(inputs.device) if self._initial else tower
        training = teacher.training
        teacher.eval()  # Batch norm must not update its statistics from crops.
        with torch.no_grad():
            target = teacher(roi_align(inputs.float(), rois, tower.image_size, sampling_ratio=2, aligned=True))
        teacher.train(training)
        student = pool_regions(dense, rois, tower.patch_size)
        cosine = functional.cosine_similarity(student, target.float(), dim=-1)
        return {"loss_distillation": self.weight * (1 - cosine).mean(), "region_cosine": cosine.detach().mean()}

    def random_regions(self, images: int, side: int, device: torch.device) -> Tensor:
        """``[R, 5]`` rois: image index and a random square (xyxy pixels) inside the image."""
        count = images * self.regions
        size = torch.empty(count, 1, device=device).uniform_(self.min_side, self.max_side) * side
        corner = torch.rand(count, 2, device=device) * (side - size)
        index = torch.arange(images, device=device).repeat_interleave(self.regions).unsqueeze(1)
        return torch.cat([index.to(size.dtype), corner, corner + size], dim=1)

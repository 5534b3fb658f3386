"""Four taps of a plain transformer to four scales (F-ViT of CLIPSelf, arXiv 2310.01403).

Use it before any MMDetection neck: ``neck=[dict(type='TapPyramid', ...), dict(type='FPN', ...)]``.

Shape letters: B images, C tap channels, h w grid cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from smartclip_det.core.errors import UserError


@MODELS.register_module()
class TapPyramid(BaseModule):
    """Upsamples tap 1 by 4 and tap 2 by 2, keeps tap 3, and halves tap 4; a frozen tower detaches the taps.

    Args:
        in_channels: C, the tower width.
        norm_cfg: norm between the two transposed convolutions; default ``BN`` (``SyncBN`` for multi-GPU training).
        init_cfg: as for any MMEngine module.
    """

    def __init__(self, in_channels: int, norm_cfg: Mapping[str, Any] | None = None, init_cfg: Any = None) -> None:
        super().__init__(init_cfg=init_cfg)
        norm = dict(norm_cfg or {"type": "BN"})
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(in_channels, in_channels, 2, 2),
            build_norm_layer(norm, in_channels)[1],
            nn.GELU(),
            nn.ConvTranspose2d(in_channels, in_channels, 2, 2),
        )
        self.up2 = nn.ConvTranspose2d(in_channels, in_channels, 2, 2)
        self.down2 = nn.MaxPool2d(2, 2, ceil_mode=True)

    def forward(self, taps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Four ``[B, C, h, w]`` taps to maps of 4h x 4w, 2h x 2w, h x w and h/2 x w/2 cells (rounded up)."""
        if len(taps) != 4:
            raise UserError(f"TapPyramid needs four taps (out_indices of the backbone); given {len(taps)}.")
        first, second, third, fourth = taps
        return self.up4(first), self.up2(second), third, self.down2(fourth)

"""MMDetection's RPN head with norm layers between its convolutions, for which it has no option."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from mmcv.cnn import ConvModule
from mmdet.models.dense_heads import RPNHead
from mmdet.registry import MODELS
from torch import nn


@MODELS.register_module()
class NormedRPNHead(RPNHead):
    """Class-agnostic RPN of the F-ViT recipe for OV-LVIS (CLIPSelf, arXiv 2310.01403).

    Args:
        args: as for ``RPNHead``.
        norm_cfg: norm after each convolution; None: no norm.
        kwargs: as for ``RPNHead``.
    """

    def __init__(self, *args: Any, norm_cfg: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self.norm_cfg = None if norm_cfg is None else dict(norm_cfg)
        super().__init__(*args, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        if self.norm_cfg is not None:
            widths = [self.in_channels, *[self.feat_channels] * self.num_convs]
            self.rpn_conv = nn.Sequential(
                *(
                    ConvModule(a, b, 3, padding=1, norm_cfg=self.norm_cfg, inplace=False)
                    for a, b in itertools.pairwise(widths)
                )
            )

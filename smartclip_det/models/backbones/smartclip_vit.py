"""The image tower as an MMDetection backbone.

Shape letters: B images, H W pixels, h w grid cells, C tap channels (tower width), D joint embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor

from smartclip_det.core.errors import check_choice
from smartclip_det.models.towers.frozen import hash_tensor, refuse_other_towers
from smartclip_det.models.towers.source import load_towers
from smartclip_det.models.towers.vision_transformer import VisionOutput
from smartclip_det.utils.devices import PRECISIONS, frozen_precision


@MODELS.register_module()
class SmartCLIPViT(BaseModule):
    """Taps of an image tower of any architecture; frozen by default.

    A frozen tower stays in eval mode and runs without gradients, once per image. In a trained tower, parameters that do
    not affect the taps are frozen, so DDP needs no search for unused parameters.
    """

    def __init__(
        self,
        towers: Mapping[str, Any],
        out_indices: Sequence[int] = (3, 5, 7, 11),
        frozen: bool = True,
        dense_mode: str = "value",
        window_size: int = 0,
        global_layers: Sequence[int] = (),
        checkpointing: bool = False,
        precision: str = "auto",
        init_cfg: Any = None,
    ) -> None:
        """Build from a towers source.

        Args:
            towers: see ``towers.source.load_towers``.
            out_indices: tapped layers, 0-based.
            frozen: whether the tower is frozen.
            dense_mode: mode of the last block for :meth:`features` with ``dense=True``.
            window_size: attention windows in cells, 0 for global attention.
            global_layers: layers with global attention despite ``window_size``.
            checkpointing: recompute blocks in the backward pass.
            precision: precision of a frozen tower and the neck on top, see ``devices.frozen_precision``; a trained
                tower uses that of the optimizer wrapper (``--amp``).
            init_cfg: unused; weights come from ``towers``.
        """
        super().__init__(init_cfg=None)
        model = load_towers(
            towers, window_size=window_size, global_layers=global_layers, checkpointing=checkpointing and not frozen
        )
        self.image_tower = model.image_tower
        self.tower_hash = model.checkpoint_hash
        self.out_indices = tuple(out_indices)
        self.frozen = frozen
        self.precision = check_choice("precision", precision, ("auto", *PRECISIONS))
        self.dense_mode = dense_mode
        self.out_channels = [self.image_tower.tap_channels[i] for i in self.out_indices]
        self._freeze()

    def _freeze(self) -> None:
        tower = self.image_tower
        if self.frozen:
            tower.requires_grad_(False)
        else:
            tower.requires_grad_(True)
            tower.freeze_unused(self.out_indices)
        trained = sum(p.numel() for p in tower.parameters() if p.requires_grad)
        total = sum(p.numel() for p in tower.parameters())
        print_log(f"SmartCLIPViT {self.tower_hash}: {trained:,} of {total:,} parameters are trained.", "current")

    def get_extra_state(self) -> Tensor:
        """Hash of the towers, so that a checkpoint records whose text embeddings it was trained with."""
        return hash_tensor(self.tower_hash)

    def set_extra_state(self, state: Tensor) -> None:
        """Reject a checkpoint trained with other towers."""
        refuse_other_towers(state, self.tower_hash)

    def init_weights(self) -> None:
        """No-op: weights were loaded with the towers."""

    def train(self, mode: bool = True) -> SmartCLIPViT:
        """Keep a frozen tower in eval mode."""
        super().train(mode)
        if self.frozen:
            self.image_tower.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """``[B, 3, H, W]`` normalised pixels to one ``[B, C, h, w]`` map per tapped layer."""
        return self.features(images).taps

    def features(self, images: Tensor, *, dense: bool = False) -> VisionOutput:
        """Taps, and the dense map ``[B, D, h, w]`` (not normalised) if ``dense``."""
        mode = self.dense_mode if dense else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen), self.mixed(images.device):
            output = self.image_tower.features(images, taps=self.out_indices, dense_mode=mode)
        maps = [t for t in (*output.taps, output.dense) if t is not None]
        if torch.is_autocast_enabled(images.device.type) or all(t.dtype == images.dtype for t in maps):
            return output
        # A third-party neck that is called without autocast expects the dtype of its own weights.
        return VisionOutput(
            output.pooled,
            None if output.dense is None else output.dense.float(),
            tuple(t.float() for t in output.taps),
            None if output.class_token is None else output.class_token.float(),
        )

    def mixed(self, device: torch.device) -> AbstractContextManager[Any]:
        """Autocast context of a frozen tower; the caller's for a trained one."""
        return frozen_precision(device, self.precision) if self.frozen else nullcontext()

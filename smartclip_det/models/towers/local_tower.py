"""A small convolutional image tower for small images, with a learned weight per cell.

A vision transformer that is small enough to train in minutes does not learn shapes in that time; a few 3x3 convolutions
do. Every cell has a value and a saliency. The pooled vector is the mean of the values, weighted by the softmax of the
saliencies. The dense map is value times exp(saliency), so that a mean over any region uses the same weights; a cosine
ignores the length (attention pooling of multiple-instance learning, arXiv 1802.04712, applied to a map).

Shape letters: B images, H W pixels, h w grid cells, W tower width, D joint embedding, C tap channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.grid import padded_size
from smartclip_det.core.words import DENSE_MODES
from smartclip_det.models.towers.vision_transformer import SALIENCY_LIMIT, VisionOutput, weighted_map

#: Pixels per cell of the last map.
STRIDE = 8


class ConvNormAct(nn.Module):
    """3x3 convolution, batch norm, GELU."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, H, W]`` to ``[B, out, H / stride, W / stride]``."""
        out: Tensor = functional.gelu(self.norm(self.conv(x)))
        return out


class LocalTower(nn.Module):
    """Convolutions of widths W/5, 2W/5, 3W/5 and W at strides 2, 4, 4 and 8, then residual blocks of W.

    Images of any size are zero-padded (right, bottom) to whole cells. The receptive field of a cell is 39 pixels with
    one residual block.

    Args:
        image_size: native side in pixels, a multiple of 8.
        width: W, a multiple of 5.
        layers: residual blocks at stride 8.
        embed_dim: D.
        window_size: must be 0: there is no attention.
        global_layers: must be empty: there is no attention.
        checkpointing: must be False, see ``recomputable``.
    """

    dense_modes: tuple[str, ...] = ("vanilla", "value")
    #: Recomputing activations in the backward pass would update batch norm statistics twice.
    recomputable = False
    patch_size = STRIDE
    #: Number of taps: one per stride.
    layers = 3
    tap_strides: tuple[int, ...] = (2, 4, 8)

    def __init__(
        self,
        *,
        image_size: int = 64,
        width: int = 80,
        layers: int = 1,
        embed_dim: int = 128,
        window_size: int = 0,
        global_layers: Sequence[int] = (),
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if image_size % STRIDE or width % 5 or not width:
            raise UserError(
                f"The local tower needs an image_size that is a multiple of {STRIDE} and a vision_width that is a "
                f"multiple of 5; given {image_size} and {width}."
            )
        if window_size or tuple(global_layers):
            raise UserError("The local tower has no attention: remove window_size and global_layers.")
        if checkpointing:
            raise UserError("The local tower has batch norm, which cannot be recomputed: set checkpointing=False.")
        self.checkpointing = False
        self.image_size, self.width, self.embed_dim = image_size, width, embed_dim
        step = width // 5
        self.stem = nn.ModuleList(
            [
                ConvNormAct(3, step, 2),
                ConvNormAct(step, 2 * step, 2),
                ConvNormAct(2 * step, 3 * step),
                ConvNormAct(3 * step, width, 2),
            ]
        )
        self.blocks = nn.ModuleList(ConvNormAct(width, width) for _ in range(layers))
        self.value = nn.Conv2d(width, embed_dim, 1)
        self.saliency = nn.Conv2d(width, 1, 1)

    @property
    def tap_channels(self) -> tuple[int, ...]:
        """C of each tap."""
        return self.width // 5, 3 * self.width // 5, self.width

    def readout(self) -> tuple[nn.LayerNorm | None, Tensor]:
        """Norm (none) and projection ``[W, D]`` between the last map and the joint embedding."""
        return None, self.value.weight.flatten(1).t()

    def freeze_unused(self, taps: Sequence[int]) -> None:
        """Freeze parameters that the taps do not depend on."""
        used = max(self._tap(t) for t in taps)
        after = [self.value, self.saliency, *([self.blocks, self.stem[3]] if used < 2 else [])]
        for part in (*after, *([self.stem[1], self.stem[2]] if used < 1 else [])):
            part.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` normalised pixels to ``[B, D]`` projected vectors, not normalised."""
        pooled = self.features(images, pooled=True).pooled
        assert pooled is not None
        return pooled

    def features(
        self, images: Tensor, *, taps: Sequence[int] = (), dense_mode: str | None = None, pooled: bool = False
    ) -> VisionOutput:
        """Encode images and return the requested features.

        Args:
            images: ``[B, 3, H, W]`` normalised with the tower's statistics.
            taps: from 0, 1 and 2 (negative from the end): maps at strides 2, 4 and 8, in this order.
            dense_mode: ``value`` or ``vanilla`` (equivalent here) for the dense map, None for no dense map.
            pooled: whether to return the pooled vector.

        Raises:
            UserError: for an unknown dense mode or one that needs attention, or a tap out of range.
        """
        if dense_mode is not None and check_choice("dense_mode", dense_mode, DENSE_MODES) not in self.dense_modes:
            raise UserError(
                f"dense_mode={dense_mode!r} changes the attention of a transformer's last block; the local tower has "
                "no attention. Use 'value'."
            )
        tapped = [self._tap(t) for t in taps]
        maps = self._maps(images)
        vector = dense = None
        if pooled or dense_mode is not None:
            value = self.value(maps[-1]).float()
            saliency = self.saliency(maps[-1]).float().clamp(-SALIENCY_LIMIT, SALIENCY_LIMIT)
            if pooled:
                vector = (value * saliency.flatten(2).softmax(dim=2).view_as(saliency)).sum(dim=(2, 3))
            if dense_mode is not None:
                dense = weighted_map(value, saliency)
        return VisionOutput(pooled=vector, dense=dense, taps=tuple(maps[i].contiguous() for i in tapped))

    def _tap(self, index: int) -> int:
        if not -self.layers <= index < self.layers:
            raise UserError(f"The local tower has taps 0..{self.layers - 1}; there is no tap {index}.")
        return index % self.layers

    def _maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps at strides 2, 4 and 8."""
        if images.dim() != 4 or images.shape[1] != 3:
            raise UserError(f"images must be [B, 3, H, W]; given {list(images.shape)}.")
        height, width = images.shape[-2:]
        full = padded_size((height, width), STRIDE)
        if full != (height, width):
            images = functional.pad(images, (0, full[1] - width, 0, full[0] - height))
        # Convolutions and their gradients are a fifth faster on a CPU in this layout, which every later map inherits.
        half = self.stem[0](images.contiguous(memory_format=torch.channels_last))
        quarter = self.stem[2](self.stem[1](half))
        x = self.stem[3](quarter)
        for block in self.blocks:
            x = x + block(x)
        return half, quarter, x

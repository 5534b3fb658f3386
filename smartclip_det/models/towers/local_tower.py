"""A small convolutional image tower for small pictures, with a learned weight of each cell.

A vision transformer of a size that trains in minutes does not learn shapes in them; a few 3x3 convolutions do. Every
cell has a value and a saliency. The pooled vector is the mean of the values weighted by the softmax of the saliency;
the dense map is value times exp(saliency), so that a mean over any region has the same weights, and a cosine does not
see the length (the attention pooling of multiple-instance learning, arXiv 1802.04712, over a map).

Shape letters: B images, H W pixels, h w grid cells, W tower width, D joint embedding, C tap channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.grid import padded_size
from smartclip_det.core.words import DENSE_MODES
from smartclip_det.models.towers.vision_transformer import SALIENCY_LIMIT, VisionOutput, weighted_map

#: Pixels of a cell of the last map.
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

    Images of any size are padded with zeros (right, bottom) to whole cells. The field of view of a cell is 39 pixels
    with one residual block.
    """

    dense_modes: tuple[str, ...] = ("vanilla", "value")
    #: Batch norm would count a batch twice where activations are computed again in backward.
    recomputable = False
    patch_size = STRIDE
    #: Taps: one at each stride.
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
        """Build.

        Args:
            image_size: native side in pixels, a multiple of 8.
            width: W, a multiple of 5.
            layers: residual blocks at stride 8.
            embed_dim: D.
            window_size: there is no attention to put into windows; only 0.
            global_layers: as ``window_size``; only none.
            checkpointing: see ``recomputable``; only False.
        """
        super().__init__()
        if image_size % STRIDE or width % 5 or not width:
            raise UserError(
                f"The local tower needs an image_size that is a multiple of {STRIDE} and a vision_width that is one of "
                f"5; given {image_size} and {width}."
            )
        if window_size or tuple(global_layers):
            raise UserError("window_size and global_layers are of attention, which the local tower has not. Omit them.")
        if checkpointing:
            raise UserError("The local tower has batch norm, which recomputing counts twice: checkpointing=False.")
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
        """Leave out of training what taps do not use."""
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
        """Encode images and keep what is asked for.

        Args:
            images: ``[B, 3, H, W]`` normalised with the tower's statistics.
            taps: of 0, 1 and 2 (negative from the end): maps at strides 2, 4 and 8, in the order asked for.
            dense_mode: ``value`` or ``vanilla`` (the same here) for the dense map, None for no dense map.
            pooled: whether the pooled vector is wanted.

        Raises:
            UserError: for a dense mode of attention, an unknown one, or a tap out of range.
        """
        if dense_mode is not None and check_choice("dense_mode", dense_mode, DENSE_MODES) not in self.dense_modes:
            raise UserError(
                f"dense_mode={dense_mode!r} changes the attention of a transformer's last block, and the local tower "
                "has no attention. Use 'value'."
            )
        wanted = [self._tap(t) for t in taps]
        maps = self._maps(images)
        vector = dense = None
        if pooled or dense_mode is not None:
            value = self.value(maps[-1]).float()
            saliency = self.saliency(maps[-1]).float().clamp(-SALIENCY_LIMIT, SALIENCY_LIMIT)
            if pooled:
                vector = (value * saliency.flatten(2).softmax(dim=2).view_as(saliency)).sum(dim=(2, 3))
            if dense_mode is not None:
                dense = weighted_map(value, saliency)
        return VisionOutput(pooled=vector, dense=dense, taps=tuple(maps[i].contiguous() for i in wanted))

    def _tap(self, index: int) -> int:
        if not -self.layers <= index < self.layers:
            raise UserError(f"The local tower has taps 0..{self.layers - 1}; a tap on {index} was asked for.")
        return index % self.layers

    def _maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """The maps at strides 2, 4 and 8."""
        if images.dim() != 4 or images.shape[1] != 3:
            raise UserError(f"images must be [B, 3, H, W]; given {list(images.shape)}.")
        height, width = images.shape[-2:]
        full = padded_size((height, width), STRIDE)
        if full != (height, width):
            images = functional.pad(images, (0, full[1] - width, 0, full[0] - height))
        half = self.stem[0](images)
        quarter = self.stem[2](self.stem[1](half))
        x = self.stem[3](quarter)
        for block in self.blocks:
            x = x + block(x)
        return half, quarter, x

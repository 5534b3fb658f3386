"""CLIP's image tower for any input size, with layer taps and dense modes.

Shape letters: B images, H W pixels, h w grid cells, W tower width, D joint embedding, C tap channels (= W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.grid import padded_size, resize_image_positions
from smartclip_det.core.words import DENSE_MODES
from smartclip_det.models.towers.transformer import ResidualBlock, Transformer, normed, residual_stream

#: Modes of the last block for the dense map (DENSE_MODES). ``vanilla``: unchanged. ``value``: each token attends only
#: to itself (MaskCLIP, arXiv 2112.01071; CLIPSelf). ``qq_kk``: self-correlation (SCLIP, 2312.01597). ``clearclip``:
#: query-query attention without residual and MLP (ClearCLIP, 2407.12442).

#: Saliencies are clamped to this: weights of cells differ by at most exp(16), within the range of half precision.
SALIENCY_LIMIT = 8.0


@dataclass
class VisionOutput:
    """Output of the image tower for B images.

    Attributes:
        pooled: ``[B, D]`` projected class-token vectors, not normalised; None if not requested.
        dense: ``[B, D, h, w]`` projected patch vectors, not normalised (see :func:`weighted_map`); None if not
            requested.
        taps: ``[B, C, h, w]`` patch tokens of each tapped layer.
        class_token: ``[B, W]`` class token after the last block; None if that block was not run in its plain form.
    """

    pooled: Tensor | None
    dense: Tensor | None
    taps: tuple[Tensor, ...]
    class_token: Tensor | None = None


class VisionTransformer(nn.Module):
    """CLIP's ViT. Images of any size are zero-padded (right, bottom) to whole patches."""

    dense_modes: tuple[str, ...] = DENSE_MODES
    #: Whether activations may be recomputed in the backward pass.
    recomputable = True
    #: Whether tokens are added to in the precision of autocast; fp32 otherwise.
    half_residuals = False

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        embed_dim: int = 512,
        activation: str = "quick_gelu",
        window_size: int = 0,
        global_layers: Sequence[int] = (),
        checkpointing: bool = False,
        saliency: bool = False,
    ) -> None:
        """Build a tower with CLIP's initialisation.

        Args:
            image_size: native side in pixels, a multiple of ``patch_size``.
            patch_size: side of a patch in pixels.
            width: W.
            layers: number of blocks.
            heads: attention heads.
            embed_dim: D.
            activation: ``quick_gelu`` or ``gelu``.
            window_size: side of attention windows in cells; 0: global attention.
            global_layers: layers (0-based) with global attention despite ``window_size``; the last always has it.
            checkpointing: recompute blocks in the backward pass.
            saliency: learn weights for cells of the dense map (:func:`weighted_map`), initially equal.
        """
        super().__init__()
        if image_size % patch_size:
            raise UserError(f"image_size {image_size} must be a multiple of patch_size {patch_size}.")
        self.image_size, self.patch_size, self.width, self.embed_dim = image_size, patch_size, width, embed_dim
        self.window_size, self.global_layers = window_size, frozenset(g % layers for g in global_layers)
        self.checkpointing = checkpointing
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn((image_size // patch_size) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))
        # No bias: it would not change any direction.
        self.saliency = nn.Parameter(torch.zeros(width, 1)) if saliency else None

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(self.transformer.resblocks)

    @property
    def tap_channels(self) -> tuple[int, ...]:
        """C of the tap of each layer."""
        return (self.width,) * self.layers

    @property
    def tap_strides(self) -> tuple[int, ...]:
        """Input pixels per cell of the tap of each layer."""
        return (self.patch_size,) * self.layers

    def readout(self) -> tuple[nn.LayerNorm | None, Tensor]:
        """Norm and projection ``[W, D]`` from the last block's tokens to the joint embedding."""
        return self.ln_post, self.proj

    def freeze_unused(self, taps: Sequence[int]) -> None:
        """Freeze parameters that the taps do not depend on."""
        used = max(self._layer(t) for t in taps)
        for part in (self.ln_post, *self.transformer.resblocks[used + 1 :]):
            part.requires_grad_(False)
        self.proj.requires_grad_(False)
        if self.saliency is not None:
            self.saliency.requires_grad_(False)

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
            taps: layers (0-based, negative from the end) whose output patch tokens to return, in this order. A tap on
                the last layer is the output of the plain block, whatever the dense mode.
            dense_mode: one of ``DENSE_MODES`` for the dense map, None for no dense map.
            pooled: whether to return the class-token vector.

        Raises:
            UserError: for an unknown dense mode or a layer out of range.
        """
        if dense_mode is not None:
            check_choice("dense_mode", dense_mode, DENSE_MODES)
        tapped = [self._layer(t) for t in taps]
        x, grid = self._embed(images)
        last = self.layers - 1
        outputs: dict[int, Tensor] = {}
        plain_last = pooled or last in tapped or dense_mode == "vanilla"
        before_last = x
        for index, block in enumerate(self.transformer.resblocks):
            before_last = x
            if index == last and not plain_last:
                break
            if index > max([*tapped, -1]) and not pooled and dense_mode is None:
                break
            x = self._run(block, x, index, grid)
            if index in tapped:
                outputs[index] = self._to_map(x[:, 1:], grid)
        dense = None
        if dense_mode is not None:
            block = self.transformer.resblocks[last]
            tokens = x if dense_mode == "vanilla" else dense_tokens(block, before_last, dense_mode)  # type: ignore[arg-type]
            states = self.ln_post(tokens[:, 1:])
            dense = self._to_map(states @ self.proj, grid)
            if self.saliency is not None:
                dense = weighted_map(dense, self._to_map(states @ self.saliency, grid))
        vector = self.ln_post(x[:, 0]) @ self.proj if pooled else None
        class_token = x[:, 0] if plain_last else None
        return VisionOutput(pooled=vector, dense=dense, taps=tuple(outputs[i] for i in tapped), class_token=class_token)

    def _layer(self, index: int) -> int:
        if not -self.layers <= index < self.layers:
            raise UserError(f"This tower has layers 0..{self.layers - 1}; there is no layer {index} to tap.")
        return index % self.layers

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if images.dim() != 4 or images.shape[1] != 3:
            raise UserError(f"images must be [B, 3, H, W]; given {list(images.shape)}.")
        height, width = images.shape[-2:]
        full = padded_size((height, width), self.patch_size)
        if full != (height, width):
            images = functional.pad(images, (0, full[1] - width, 0, full[0] - height))
        # The weights may be in half precision, as with DeepSpeed.
        cells = self.conv1(images.to(self.conv1.weight.dtype))
        grid = (cells.shape[-2], cells.shape[-1])
        tokens = cells.flatten(2).transpose(1, 2)
        cls = self.class_embedding.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
        positions = resize_image_positions(self.positional_embedding, grid).to(tokens.dtype)
        return residual_stream(self.ln_pre(torch.cat([cls, tokens], dim=1) + positions), self.half_residuals), grid

    def _run(self, block: nn.Module, x: Tensor, index: int, grid: tuple[int, int]) -> Tensor:
        windowed = self.window_size > 0 and index not in self.global_layers and index != self.layers - 1
        window = (self.window_size, *grid) if windowed else None
        if self.checkpointing and self.training:
            out: Tensor = checkpoint(block, x, False, None, window, use_reentrant=False)
            return out
        return block(x, window=window)

    @staticmethod
    def _to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        # Contiguous: with one image the transpose is a channels-last view, which convolutions preserve, and mmcv's CPU
        # RoIAlign reads it as if it were contiguous.
        return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *grid).contiguous()


def weighted_map(values: Tensor, saliency: Tensor) -> Tensor:
    """Values of cells times exp(saliency), in fp32.

    Means over regions are then weighted by the saliencies, up to a length that cosines ignore: attention pooling of
    multiple-instance learning (arXiv 1802.04712) over any part of a map.

    Args:
        values: ``[B, D, h, w]``.
        saliency: ``[B, 1, h, w]``; clamped to +-``SALIENCY_LIMIT``.
    """
    return (values.float() * saliency.float().clamp(-SALIENCY_LIMIT, SALIENCY_LIMIT).exp()).contiguous()


def dense_tokens(block: ResidualBlock, x: Tensor, mode: str) -> Tensor:
    """Output tokens of the last block in a dense mode; ``[B, 1 + h * w, W]`` in and out."""
    q, k, v = block.attn.project(normed(block.ln_1, x))
    if mode == "value":
        attended = v
    else:
        attended = functional.scaled_dot_product_attention(q, q, v)
        if mode == "qq_kk":
            attended = attended + functional.scaled_dot_product_attention(k, k, v)
    attended = block.attn.merge(attended)
    if mode == "clearclip":
        return attended
    x = x + attended
    return x + block.mlp(normed(block.ln_2, x))

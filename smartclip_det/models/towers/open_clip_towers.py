"""Encoders of open_clip's timm families (SigLIP, EVA02, ...) with the ``Encoder`` interface; they have no masks.

The dense feature of a patch token is what the tower's pooling would return for this token alone: the projection of
EVA's class token, or SigLIP's attention pooling over a single token. In ``value`` mode each token of the last block
attends only to itself, which is MaskCLIP's value path (arXiv 2112.01071).

Shape letters: B images, K texts, L tokens, N patches, D joint embedding, h w grid cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smartclip_det.core.errors import UserError, check_choice, unknown_names
from smartclip_det.models.towers.checkpoints import state_hash
from smartclip_det.models.towers.smartclip import TextFeatures
from smartclip_det.models.towers.tokenizer import (
    open_clip_model,
    open_clip_names,
    open_clip_statistics,
    open_clip_tokenizer,
)

DENSE_MODES = ("vanilla", "value")


@dataclass(frozen=True)
class OpenClipConfig:
    """Sizes of an open_clip encoder; images of another size are refused."""

    image_size: int
    patch_size: int
    embed_dim: int
    context_length: int
    mask_pad: str = "ignore"
    fixed_size: bool = True


class OpenClipEncoder(nn.Module):
    """A frozen open_clip model with a timm vision transformer as image tower.

    Args:
        name: open_clip model name, e.g. ``ViT-B-16-SigLIP`` or ``EVA02-B-16``.
        checkpoint: weights file; None for random weights.
        image_size: input side in pixels, if not the model's own; position embeddings are resized.
        seed: seed of random weights.
        tokenizer: Hugging Face tokenizer folder, for models whose tokenizer would have to be downloaded, or a
            function from texts to ids ``[K, L]``; None: the model's own.

    Raises:
        UserError: for unknown names, missing files, image towers that are not timm transformers, or tokenizers
            that are not available offline.
    """

    dense_modes: tuple[str, ...] = DENSE_MODES

    def __init__(
        self,
        name: str,
        checkpoint: str | Path | None = None,
        *,
        image_size: int = 0,
        seed: int = 0,
        tokenizer: str | Callable[[list[str]], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if name not in open_clip_names():
            raise unknown_names("open_clip models", [name], open_clip_names(), "See open_clip.list_models().")
        if checkpoint is not None and not Path(checkpoint).is_file():
            raise UserError(f"No checkpoint at {checkpoint}.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = open_clip_model(name, None if checkpoint is None else str(checkpoint), image_size)
        self.model.eval().requires_grad_(False)
        trunk = getattr(self.model.visual, "trunk", None)
        if trunk is None or not hasattr(trunk, "blocks") or not hasattr(trunk, "patch_embed"):
            raise UserError(
                f"The image tower of {name} is not a timm transformer. Load towers in the OpenAI layout from their "
                "checkpoint, without open_clip=NAME."
            )
        self.name = name
        self._tokenizer = tokenizer if callable(tokenizer) else open_clip_tokenizer(name, tokenizer)
        self.config = OpenClipConfig(
            image_size=int(trunk.patch_embed.img_size[0]),
            patch_size=int(trunk.patch_embed.patch_size[0]),
            embed_dim=self._dimension(),
            context_length=int(self.model.context_length),
        )
        self._hash = state_hash(self.model.state_dict())

    def _dimension(self) -> int:
        side = self.model.visual.trunk.patch_embed.img_size
        with torch.no_grad():
            return int(self.encode_image(torch.zeros(1, 3, *side)).shape[1])

    @property
    def logit_scale(self) -> Tensor:
        """Temperature of the model; it is on the model's device."""
        scale: Tensor = self.model.logit_scale
        return scale

    @property
    def checkpoint_hash(self) -> str:
        """Hash of the weights, 16 hex digits."""
        return self._hash

    def image_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of RGB in [0, 1] that the model was trained with."""
        return open_clip_statistics(self.name)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` normalised pixels to ``[B, D]``, not normalised."""
        out: Tensor = self.model.encode_image(images)
        return out

    @torch.no_grad()
    def encode_dense(self, images: Tensor, dense_mode: str = "value") -> Tensor:
        """``[B, 3, H, W]`` normalised pixels at the model's input size to ``[B, D, h, w]``, not normalised."""
        check_choice("dense_mode", dense_mode, DENSE_MODES)
        side = self.config.image_size
        if tuple(images.shape[-2:]) != (side, side):
            raise UserError(
                f"{self.name} was built for {side} x {side} pixels; given {images.shape[-1]} x {images.shape[-2]}. "
                "Build it with image_size=N (--image-size N) and use that size throughout."
            )
        trunk = self.model.visual.trunk
        hook = (
            trunk.blocks[-1].register_forward_pre_hook(_attend_to_self, with_kwargs=True)
            if dense_mode == "value"
            else None
        )
        try:
            tokens = trunk.forward_features(images)[:, trunk.num_prefix_tokens :]
        finally:
            if hook is not None:
                hook.remove()
        cells = side // self.config.patch_size
        flat = tokens.reshape(-1, 1, tokens.shape[-1])
        alone = flat[:, 0] if trunk.attn_pool is None else trunk.attn_pool(flat)
        vectors = self.model.visual.head(trunk.head(trunk.head_drop(trunk.fc_norm(alone))))
        return vectors.reshape(len(images), cells, cells, -1).permute(0, 3, 1, 2)

    def tokenize(self, texts: str | Sequence[str], *, truncate: bool = False) -> Tensor:
        """``[K, L]`` ids; these tokenizers truncate long texts, as in the training of their models."""
        out: Tensor = self._tokenizer([texts] if isinstance(texts, str) else list(texts))
        return out

    @torch.no_grad()
    def forward_text(self, tokens: Tensor) -> TextFeatures:
        """Embeds of ``[K, L]`` ids; states are the embeds, and there are no masks."""
        embeds = self.model.encode_text(tokens)
        return TextFeatures(embeds, embeds.unsqueeze(1), None)

    def mask_logits(self, states: Tensor, keep: Tensor) -> None:
        """None: no mask network."""

    def provenance(self) -> dict[str, str]:
        """Identifies the rows of a bank made by this encoder."""
        return {
            "checkpoint_hash": self._hash,
            "tokenizer": f"open_clip/{self.name}",
            "mask_pad": "none",
            "context_length": str(self.config.context_length),
        }


def _attend_to_self(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    tokens = args[0].shape[1]
    return args, {**kwargs, "attn_mask": torch.eye(tokens, dtype=torch.bool, device=args[0].device)}

"""What the rest of the house asks of an image-and-text encoder, whatever its family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class Encoder(Protocol):
    """CLIP-like towers: :class:`SmartCLIP`, and :class:`OpenClipEncoder` for families that it does not read.

    ``config`` tells ``image_size``, ``patch_size``, ``embed_dim`` and ``mask_pad``; ``logit_scale`` tells the device.

    Shape letters: B images, K texts, L tokens, D joint embedding, h w grid cells.
    """

    config: Any
    logit_scale: Any
    dense_modes: tuple[str, ...]

    @property
    def checkpoint_hash(self) -> str:
        """16 hex digits over the weights."""
        ...

    def image_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of RGB in [0, 1]."""
        ...

    def encode_image(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` normalised pixels to ``[B, D]``."""
        ...

    def encode_dense(self, images: Tensor, dense_mode: str = "value") -> Tensor:
        """``[B, 3, H, W]`` normalised pixels to ``[B, D, h, w]``."""
        ...

    def tokenize(self, texts: str | Sequence[str], *, truncate: bool = False) -> Tensor:
        """``[K, L]`` ids."""
        ...

    def forward_text(self, tokens: Tensor) -> Any:
        """Embeds, states and mask logits (None without masks) of ``[K, L]`` ids."""
        ...

    def mask_logits(self, states: Tensor, keep: Tensor) -> Tensor | None:
        """``[K, D]`` mask logits, or None."""
        ...

    def provenance(self) -> dict[str, str]:
        """What identifies the rows of a bank."""
        ...

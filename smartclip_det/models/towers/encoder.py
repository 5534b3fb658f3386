"""Interface of image-text encoders, independent of their family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class Encoder(Protocol):
    """CLIP-like towers: :class:`SmartCLIP`, and :class:`OpenClipEncoder` for other families.

    ``config`` has ``image_size``, ``patch_size``, ``embed_dim`` and ``mask_pad``; ``logit_scale`` is on the device.

    Shape letters: B images, K texts, L tokens, D joint embedding, h w grid cells.
    """

    config: Any
    logit_scale: Any
    dense_modes: tuple[str, ...]

    @property
    def checkpoint_hash(self) -> str:
        """Hash of the weights, 16 hex digits."""
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
        """``[K, L]`` token ids."""
        ...

    def forward_text(self, tokens: Tensor) -> Any:
        """Embeds, states and mask logits (None without masks) of ``[K, L]`` ids."""
        ...

    def mask_logits(self, states: Tensor, keep: Tensor) -> Tensor | None:
        """``[K, D]`` mask logits, or None."""
        ...

    def provenance(self) -> dict[str, str]:
        """Identifies the rows of a bank made by this encoder."""
        ...

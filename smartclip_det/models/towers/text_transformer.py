"""The text tower of CLIP, Long-CLIP and SmartCLIP.

Shape letters: K texts, L tokens, W text width, D joint embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smartclip_det.core.errors import UserError
from smartclip_det.core.grid import KEPT_POSITIONS
from smartclip_det.models.towers.transformer import Transformer, residual_stream


@dataclass
class TextOutput:
    """Output of the text tower for K texts.

    Attributes:
        embeds: ``[K, D]`` projected end-token vectors, not normalised.
        states: ``[K, L, W]`` token states after the final norm, before projection.
    """

    embeds: Tensor
    states: Tensor


class TextTransformer(nn.Module):
    """Causal transformer over CLIP tokens, read out at the end token.

    A stretched tower (248 positions) has Long-CLIP's two tables: rows 0-19 of ``positional_embedding`` (frozen) and
    rows from 20 of ``positional_embedding_res`` are used. Both are kept so that released files round-trip exactly.
    """

    #: Whether tokens are added to in the precision of autocast; fp32 otherwise.
    half_residuals = False

    def __init__(
        self,
        *,
        context_length: int = 77,
        vocab_size: int = 49408,
        width: int = 512,
        layers: int = 12,
        heads: int = 8,
        embed_dim: int = 512,
        activation: str = "quick_gelu",
        stretched: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.checkpointing = checkpointing
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width), requires_grad=not stretched)
        self.positional_embedding_res = nn.Parameter(torch.empty(context_length, width)) if stretched else None
        self.transformer = Transformer(width, layers, heads, activation)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        if self.positional_embedding_res is not None:
            self.positional_embedding_res.data.copy_(self.positional_embedding)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def positions(self, length: int) -> Tensor:
        """``[length, W]`` position embeddings."""
        if length > self.context_length:
            raise UserError(f"{length} tokens do not fit the context of {self.context_length}.")
        if self.positional_embedding_res is None:
            return self.positional_embedding[:length]
        head = self.positional_embedding[: min(length, KEPT_POSITIONS)]
        return torch.cat([head, self.positional_embedding_res[KEPT_POSITIONS:length]])

    def forward(self, tokens: Tensor) -> TextOutput:
        """Encode ``[K, L]`` token ids, L at most the context length.

        Padding on the right may be trimmed to the longest text of the batch: features do not change (causal attention,
        end-token readout), but the masks of a ``mask_pad='include'`` network need all positions.
        """
        if tokens.dim() != 2:
            raise UserError(f"tokens must be [K, L]; given {list(tokens.shape)}.")
        x = residual_stream(self.token_embedding(tokens) + self.positions(tokens.shape[1]), self.half_residuals)
        for block in self.transformer.resblocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, True, use_reentrant=False)
            else:
                x = block(x, causal=True)
        states = self.ln_final(x)
        ends = states[torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=-1)]
        return TextOutput(embeds=ends @ self.text_projection, states=states)

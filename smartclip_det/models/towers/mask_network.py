"""Mask network: maps token states of a text to a mask over the joint embedding (SmartCLIP, 2507.22264, section 4.1).

Shape letters: K texts, L tokens, W text width, D joint embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.models.towers.transformer import ResidualBlock, residual_stream

MASK_PADS = ("include", "ignore")


class AttentionPool(nn.Module):
    """Softmax-weighted sum of tokens, with one learned score per token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.Linear(width, 1)
        nn.init.normal_(self.attention.weight, std=width**-0.5)
        nn.init.zeros_(self.attention.bias)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """``[K, L, W]`` to ``[K, W]``; tokens with ``keep [K, L]`` False have weight 0."""
        scores = self.attention(x)
        if keep is not None:
            scores = scores.masked_fill(~keep.unsqueeze(-1), float("-inf"))
        return (scores.softmax(dim=1) * x).sum(dim=1)


class MaskNetwork(nn.Module):
    """One bidirectional block, attention pooling, and an output projection only if W differs from D.

    The input is detached, so the mask loss never trains the text tower. With ``mask_pad='include'`` padding is attended
    to and pooled like any token, so released masks need all 248 positions. ``ignore`` excludes padding and is the
    default for new training. With ``top_k`` every mask has exactly that many active dimensions (except for ties):
    logits are shifted so that the k-th is above zero and the next one below.
    """

    #: Whether tokens are added to in the precision of autocast; fp32 otherwise.
    half_residuals = False

    def __init__(
        self,
        width: int,
        embed_dim: int,
        heads: int,
        *,
        layers: int = 1,
        activation: str = "quick_gelu",
        mask_pad: str = "ignore",
        top_k: int = 0,
    ) -> None:
        super().__init__()
        self.top_k = top_k
        self.mask_pad = check_choice("mask_pad", mask_pad, MASK_PADS)
        self.resblocks = nn.ModuleList(ResidualBlock(width, heads, activation) for _ in range(layers))
        for block in self.resblocks:
            block.initialise(layers)  # type: ignore[operator]
        self.attn_pool = AttentionPool(width)
        # Extension: the released network outputs W logits, which works only if W equals D.
        self.proj: nn.Linear | None = None if width == embed_dim else nn.Linear(width, embed_dim)

    @torch.no_grad()
    def start_at(self, bias: float) -> None:
        """Add a constant to every logit before training; above 0, masks start open.

        Raises:
            UserError: with ``top_k``, where a constant has no effect.
        """
        if self.top_k:
            raise UserError(f"mask_bias shifts all logits equally and has no effect with mask_top_k={self.top_k}.")
        # Pooling weights sum to 1, so without a projection the last bias of the block is added to the logits.
        block = self.resblocks[-1]
        assert isinstance(block, ResidualBlock)
        last = block.mlp.c_proj if self.proj is None else self.proj
        last.bias.add_(bias)

    def forward(self, states: Tensor, keep: Tensor | None = None) -> Tensor:
        """Mask logits.

        Args:
            states: ``[K, L, W]`` token states after the text tower's final norm.
            keep: ``[K, L]`` True for tokens up to and including the end token; used by ``ignore`` only.

        Returns:
            ``[K, D]`` logits; a mask is 1 where their sigmoid is at least 0.5.
        """
        x = residual_stream(states.detach(), self.half_residuals)
        used = keep if self.mask_pad == "ignore" else None
        for block in self.resblocks:
            x = block(x, keep=used)
        pooled = self.attn_pool(x, used)
        logits = pooled if self.proj is None else self.proj(pooled)
        if self.top_k:
            best = logits.detach().topk(self.top_k + 1, dim=-1).values
            logits = logits - best[:, -2:].mean(dim=-1, keepdim=True)
        return logits


def token_keep(tokens: Tensor) -> Tensor:
    """``[K, L]`` True up to and including the end token, which has the largest id of its row."""
    end = tokens.argmax(dim=-1, keepdim=True)
    return torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0) <= end

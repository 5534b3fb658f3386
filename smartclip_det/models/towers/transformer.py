"""Pre-norm residual attention blocks in the parameter layout of OpenAI CLIP.

Shape letters: B sequences, L tokens, W width, h w grid cells, n heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from smartclip_det.core.errors import check_choice

#: Factor in QuickGELU's sigmoid.
SLOPE = 1.702
#: Maximum number of compiled graphs of blocks per process.
RECOMPILE_LIMIT = 64


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``, the activation that OpenAI CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as ``x``; without gradients it allocates one tensor instead of three."""
        if torch.is_grad_enabled():
            return x * torch.sigmoid(SLOPE * x)
        return (SLOPE * x).sigmoid_().mul_(x)


ACTIVATION_LAYERS: dict[str, Callable[[], nn.Module]] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class Attention(nn.Module):
    """Multi-head self-attention with fused kernels and the parameter names of ``nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, L, W]`` to queries, keys and values, each ``[B, n, L, W / n]``."""
        b, length, width = x.shape
        qkv = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(b, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return q, k, v

    def merge(self, heads: Tensor) -> Tensor:
        """Heads ``[B, n, L, W / n]`` through the output projection to ``[B, L, W]``."""
        b, _, length, _ = heads.shape
        return self.out_proj(heads.transpose(1, 2).reshape(b, length, -1))

    def forward(
        self, x: Tensor, *, causal: bool = False, keep: Tensor | None = None, window: tuple[int, int, int] | None = None
    ) -> Tensor:
        """Attend over ``[B, L, W]``.

        Args:
            x: ``[B, L, W]``.
            causal: each token attends to itself and earlier ones.
            keep: ``[B, L]`` True for tokens that may be attended to.
            window: ``(size, h, w)``: patch tokens attend within windows of size x size cells and to the class token;
                the class token (row 0) attends to all.
        """
        q, k, v = self.project(x)
        if window is not None:
            return self.merge(windowed_attention(q, k, v, *window))
        mask = None if keep is None else keep[:, None, None, :]
        return self.merge(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal))


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, size: int, h: int, w: int) -> Tensor:
    """Attention within windows of a grid, class token first.

    Args:
        q: ``[B, n, 1 + h * w, d]`` queries; ``k`` and ``v`` have the same shape.
        k: keys.
        v: values.
        size: window side in cells; grids that are not a multiple are padded with cells that are masked out.
        h: grid height.
        w: grid width.
    """
    b, n, _, d = q.shape
    rows, cols = -(-h // size), -(-w // size)
    pad = (0, 0, 0, cols * size - w, 0, rows * size - h)

    def split(x: Tensor) -> Tensor:
        cells = functional.pad(x[:, :, 1:].reshape(b, n, h, w, -1), pad)
        cells = cells.view(b, n, rows, size, cols, size, -1).permute(0, 2, 4, 1, 3, 5, 6)
        return cells.reshape(b * rows * cols, n, size * size, -1)

    def with_class(x: Tensor) -> Tensor:
        cls = x[:, None, :, :1].expand(b, rows * cols, n, 1, d).reshape(b * rows * cols, n, 1, d)
        return torch.cat([cls, split(x)], dim=2)

    keep = split(q.new_ones(b, n, 1 + h * w, 1))[:, :1, :, 0].bool()
    keep = functional.pad(keep, (1, 0), value=True).unsqueeze(2)
    out = functional.scaled_dot_product_attention(split(q), with_class(k), with_class(v), attn_mask=keep)
    out = out.view(b, rows, cols, n, size, size, d).permute(0, 3, 1, 4, 2, 5, 6)
    out = out.reshape(b, n, rows * size, cols * size, d)[:, :, :h, :w].reshape(b, n, h * w, d)
    return torch.cat([functional.scaled_dot_product_attention(q[:, :, :1], k, v), out], dim=2)


def normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm in the precision of its input; the kernel accumulates in fp32.

    Autocast would cast half-precision inputs to fp32 and the output back, with one kernel each.
    """
    if x.dtype not in (torch.bfloat16, torch.float16) or norm.weight.dtype == x.dtype:
        return norm(x)
    with torch.autocast(x.device.type, enabled=False):
        weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
        return functional.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def residual_stream(x: Tensor, half: bool) -> Tensor:
    """Tokens of the residual stream: unchanged, or cast to the autocast precision if ``half`` and autocast is on."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if half and torch.is_autocast_enabled(kind) else x


class MLP(nn.Module):
    """Two linear layers with an activation between them; the hidden width is four times the input's."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        check_choice("activation", activation, ACTIVATION_LAYERS)
        self.c_fc = nn.Linear(width, 4 * width)
        self.activation = ACTIVATION_LAYERS[activation]()
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., W]`` to ``[..., W]``."""
        if isinstance(self.activation, QuickGELU) and self.folds(x):
            return folded_quick_gelu(x, self.c_fc, self.c_proj)
        return self.c_proj(self.activation(self.c_fc(x)))

    def folds(self, x: Tensor) -> bool:
        """Whether scaling the weights is cheaper than two of three passes over activations: in training or on GPUs."""
        return (torch.is_grad_enabled() or x.is_cuda) and x.numel() >= self.c_fc.weight.numel()


def folded_quick_gelu(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    """``second(quick_gelu(first(x)))`` with a single elementwise kernel between the products, forward and backward.

    ``y sigmoid(1.702 y) = silu(1.702 y) / 1.702``, and both factors are folded into the weights. The backward pass
    stores SiLU's input and output; the plain form stores the sigmoid as well.
    """
    inner = functional.linear(x, SLOPE * first.weight, None if first.bias is None else SLOPE * first.bias)
    active = functional.silu(inner, inplace=not torch.is_grad_enabled())
    return functional.linear(active, second.weight / SLOPE, second.bias)


class ResidualBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``.

    Attributes:
        backend: of ``torch.compile``, by name or as a function; None: the block runs as it is written. Set by
            :func:`compile_blocks`.
    """

    backend: str | Callable[..., Any] | None = None

    def __init__(self, width: int, heads: int, activation: str = "quick_gelu") -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, activation)

    def forward(
        self, x: Tensor, causal: bool = False, keep: Tensor | None = None, window: tuple[int, int, int] | None = None
    ) -> Tensor:
        """``[B, L, W]`` to ``[B, L, W]``; arguments as in :class:`Attention`."""
        x = x + self.attn(normed(self.ln_1, x), causal=causal, keep=keep, window=window)
        return x + self.mlp(normed(self.ln_2, x))

    def train(self, mode: bool = True) -> ResidualBlock:
        """Compile only in training, where sizes repeat; texts in evaluation have any length."""
        super().train(mode)
        self._compiled_call_impl = None
        if mode and self.backend is not None:
            self.compile(backend=self.backend, fullgraph=True, dynamic=False)
        return self

    def initialise(self, layers: int) -> None:
        """CLIP's initialisation for a stack of ``layers`` blocks (released code)."""
        width = self.ln_1.normalized_shape[0]
        nn.init.normal_(self.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(self.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
        nn.init.zeros_(self.attn.out_proj.bias)
        nn.init.normal_(self.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(self.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)


def compile_blocks(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> int:
    """Compile the residual blocks of a model with ``torch.compile``, for training.

    Blocks of the same size share a graph. A graph is compiled for every input size, so texts should be padded to a few
    lengths (``multiple`` of ``SmartCLIP.forward_text_by_length``). State dict keys do not change.

    Args:
        model: any module; all its :class:`ResidualBlock` modules are compiled.
        backend: name of a ``torch.compile`` backend, or a callable.

    Returns:
        Number of compiled blocks.

    Raises:
        UserError: for an unknown backend, with the closest names.
    """
    import torch._dynamo

    if isinstance(backend, str):
        check_choice("compile", backend, torch._dynamo.list_backends(exclude_tags=()))
    # One limit for all blocks: two towers, a mask network, a few text lengths and the last batch of an epoch.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    blocks = [m for m in model.modules() if isinstance(m, ResidualBlock)]
    for block in blocks:
        block.backend = backend
        block.train(block.training)
    return len(blocks)


class Transformer(nn.Module):
    """A stack of residual blocks, named as in CLIP."""

    def __init__(self, width: int, layers: int, heads: int, activation: str) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualBlock(width, heads, activation) for _ in range(layers))
        for block in self.resblocks:
            block.initialise(layers)  # type: ignore[operator]

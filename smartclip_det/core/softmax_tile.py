"""One tile of a softmax loss over masked cosines, with a custom backward pass.

Autograd would save a ``[B, K]`` matrix for each operation between the products and the log-sum-exp. This function saves
the inputs and the logits and recomputes the rest: half the memory for one more matrix product.

Shape letters: B images, K captions, D joint embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smartclip_det.core.similarity import EPS


class SoftmaxTile(torch.autograd.Function):
    """Log-sum-exps, matched logits and sum of ``scale * masked_cosine`` over a tile.

    With x = image / peak, w = scale * m * t / norm and s = x^2 (m^2)^T, the logits are ``x w^T / sqrt(s)``. Where s or
    the norm is below :data:`EPS`, they are 0 and have no gradient, as in :func:`similarity.masked_cosine`.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, masks: Tensor | None, scale: Tensor, offset: int, masked_norm: bool
    ) -> tuple[Tensor, ...]:
        """Compute the reductions of a tile.

        Args:
            ctx: autograd context.
            images: ``[B, D]``.
            texts: ``[K, D]``.
            masks: ``[K, D]``, or None.
            scale: scalar.
            offset: column of the first image's own caption; those of the other images follow. It may be outside the
                tile.
            masked_norm: whether texts are normalised under their masks.

        Returns:
            ``[B]`` log-sum-exp of rows, ``[K]`` of columns, ``[B]`` own logits (0 if outside the tile), and the sum.
        """
        with torch.autocast(images.device.type, enabled=False):
            peaks = _peaks(images), _peaks(texts)
            unit = texts / peaks[1]
            weights = unit if masks is None else unit * masks
            square = (weights if masked_norm else unit).square().sum(dim=1)
            empty = square <= EPS
            factor = scale * square.masked_fill(empty, 1.0).rsqrt()
            x, w = images / peaks[0], weights * factor.unsqueeze(1)
            logits = (x @ w.t()).mul_(_inverse_lengths(x, masks, empty))
            rows, columns = logits.logsumexp(1), logits.logsumexp(0)
            ctx.save_for_backward(images, texts, masks, logits, rows, columns, *peaks, factor, scale, empty)
            ctx.offset, ctx.masked_norm = offset, masked_norm
            return rows, columns, own_logits(logits, offset), logits.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of images, texts, masks and scale."""
        images, texts, masks, logits, rows, columns, peak, text_peak, factor, scale, empty = ctx.saved_tensors
        of_rows, of_columns, of_matched, of_total = grads
        with torch.autocast(images.device.type, enabled=False):
            x, unit = images / peak, texts / text_peak
            weights = unit if masks is None else unit * masks
            w = weights * factor.unsqueeze(1)
            inverse = _inverse_lengths(x, masks, empty)
            g = (logits - rows.unsqueeze(1)).exp_().mul_(of_rows.unsqueeze(1))
            g += (logits - columns).exp_().mul_(of_columns)
            g += of_total
            index, inside = _own_columns(logits, ctx.offset)
            g.scatter_(1, index, g.gather(1, index) + (of_matched * inside).unsqueeze(1))
            scale_grad = (g * logits).sum() / scale if ctx.needs_input_grad[3] else None
            g *= inverse  # gradient of x w^T
            h = inverse.mul_(g).mul_(logits)  # gradient of s, times -2
            x_grad, w_grad, mask_grad = g @ w, g.t() @ x, None
            if masks is None:
                x_grad -= x * h.sum(dim=1, keepdim=True)
            else:
                x_grad -= (h @ masks.square()).mul_(x)
                mask_grad = (h.t() @ x.square()).mul_(masks).neg_()
            along = (w_grad * w).sum(dim=1, keepdim=True)
            w_grad *= factor.unsqueeze(1)
            # Gradient through the norm: of the masked text, or of the full one.
            shrink = along * (factor / scale).square().unsqueeze(1)
            if ctx.masked_norm:
                w_grad -= weights * shrink
            text_grad = w_grad if masks is None else w_grad * masks
            if not ctx.masked_norm:
                text_grad = text_grad - unit * shrink
            if mask_grad is not None:
                mask_grad += w_grad * unit
            return x_grad / peak, text_grad / text_peak, mask_grad, scale_grad, None, None


def _peaks(x: Tensor) -> Tensor:
    """``[N, 1]`` max-abs of each row, 1 for zero rows; dividing by it leaves cosines unchanged and avoids overflow."""
    peak = x.abs().amax(dim=1, keepdim=True) if x.shape[1] else x.new_ones(len(x), 1)
    return peak.masked_fill_(peak == 0, 1.0)


def _inverse_lengths(x: Tensor, masks: Tensor | None, empty: Tensor) -> Tensor:
    """``[B, K]`` inverse norms of the masked image vectors; 0 where the image or text norm vanishes. NaN propagates."""
    if masks is None:
        square = x.square().sum(dim=1, keepdim=True).repeat(1, len(empty))
    else:
        square = x.square() @ masks.square().t()
    return square.masked_fill_((square <= EPS).logical_or_(empty), torch.inf).rsqrt_()


def own_logits(logits: Tensor, offset: int) -> Tensor:
    """``[B]`` logits of column ``offset + row`` of ``[B, K]``; 0 for columns outside the tile."""
    index, inside = _own_columns(logits, offset)
    own = logits.gather(1, index).squeeze(1)
    return torch.where(inside, own, torch.zeros_like(own))


def _own_columns(logits: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """``[B, 1]`` column of each image's own caption, clamped to the tile, and ``[B]`` whether it lies in the tile."""
    columns = torch.arange(offset, offset + len(logits), device=logits.device)
    inside = (columns >= 0) & (columns < logits.shape[1])
    return columns.clamp(0, logits.shape[1] - 1).unsqueeze(1), inside

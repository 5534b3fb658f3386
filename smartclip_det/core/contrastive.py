"""Alignment losses: SmartCLIP (arXiv 2507.22264, section 4.2), CLIP (2103.00020), SigLIP (2303.15343).

Each process scores its own B images against the captions of all processes once: the *strip* ``[B, Bg]`` of the logits.
The image-to-text loss needs only the strip; the text-to-image loss needs the log-sum-exp of each column, which takes
one reduction of Bg numbers across processes. There is no second strip, and image embeddings are never gathered.

A strip is computed in tiles. With more than one tile, each is recomputed in the backward pass, so that memory scales
with the tile and not with B x Bg; values and gradients are unchanged. A single tile of the softmax losses saves only
its logits.

Shape letters: B images of this process, Bg captions of all processes, D joint embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.similarity import TEXT_NORMS, check_shapes, masked_cosine
from smartclip_det.core.softmax_tile import SoftmaxTile, own_logits

#: The released recipe uses a constant scale; ``logit_scale`` is in its checkpoints but unused.
SCALE = 100.0
#: Logits per tile: 64 MiB in fp32.
TILE = 1 << 24


@dataclass
class Strip:
    """Reductions of the logits of B images against Bg captions, as the losses need them.

    Attributes:
        rows: ``[B]`` log-sum-exp over captions of each image.
        columns: ``[Bg]`` log-sum-exp over this process's images of each caption.
        matched: ``[B]`` logit of each image with its own caption.
        total: sum of all logits.
    """

    rows: Tensor
    columns: Tensor
    matched: Tensor
    total: Tensor


def alignment_logits(
    image_embeds: Tensor,
    text_embeds: Tensor,
    masks: Tensor | None,
    *,
    scale: float | Tensor = SCALE,
    text_norm: str = "full",
) -> Tensor:
    """``[Bi, Bt]`` scaled similarities of images (rows) and captions (columns); each caption masks every image.

    Args:
        image_embeds: ``[Bi, D]`` projected image vectors, not normalised.
        text_embeds: ``[Bt, D]`` text vectors.
        masks: ``[Bt, D]`` caption masks, or None for plain CLIP.
        scale: multiplies the cosine.
        text_norm: see :func:`masked_cosine`; ``masked`` masks the text as well.
    """
    return scale * masked_cosine(image_embeds, text_embeds, masks, text_norm=text_norm)


def softmax_strip(
    image_embeds: Tensor,
    text_embeds: Tensor,
    masks: Tensor | None,
    first: int = 0,
    *,
    scale: float | Tensor = SCALE,
    text_norm: str = "full",
    tile: int = TILE,
) -> Strip:
    """Compute the strip of this process for the softmax losses.

    Args:
        image_embeds: ``[B, D]`` of this process.
        text_embeds: ``[Bg, D]`` of all processes, in rank order.
        masks: ``[Bg, D]``, or None.
        first: column of the first image's caption; those of the other images follow.
        scale: multiplies the cosine.
        text_norm: see :func:`masked_cosine`.
        tile: maximum number of logits per tile.

    Raises:
        UserError: if the images' own columns are outside the strip.
    """
    if first < 0 or first + len(image_embeds) > len(text_embeds):
        raise UserError(
            f"{len(image_embeds)} images starting at column {first} do not fit {len(text_embeds)} captions."
        )
    check_shapes(image_embeds, text_embeds, masks)
    masked_norm = check_choice("text_norm", text_norm, TEXT_NORMS) == "masked"
    dtype = torch.float64 if image_embeds.dtype == torch.float64 else torch.float32
    # new_full fills on the device: copying a Python number to a GPU synchronises.
    factor = scale.to(dtype) if isinstance(scale, Tensor) else image_embeds.new_full((), scale, dtype=dtype)

    def run(v: Tensor, t: Tensor, m: Tensor | None, offset: int) -> tuple[Tensor, ...]:
        return SoftmaxTile.apply(v, t, m, factor, offset, masked_norm)

    inputs = image_embeds.to(dtype), text_embeds.to(dtype), None if masks is None else masks.to(dtype)
    rows, columns, matched, total = [], [], [], inputs[0].new_zeros(())
    for line in _tiled(run, *inputs, first, tile):
        rows.append(torch.stack([r for r, _, _, _ in line]).logsumexp(0))
        columns.append(torch.cat([c for _, c, _, _ in line]))
        matched.append(torch.stack([m for _, _, m, _ in line]).sum(0))
        total = total + torch.stack([t for _, _, _, t in line]).sum()
    return Strip(torch.cat(rows), torch.stack(columns).logsumexp(0), torch.cat(matched), total)


def sigmoid_strip(
    image_embeds: Tensor,
    text_embeds: Tensor,
    masks: Tensor | None,
    first: int,
    *,
    scale: float | Tensor,
    bias: float | Tensor,
    text_norm: str = "full",
    tile: int = TILE,
) -> Tensor:
    """Sum over a strip of ``softplus(-z (scale cos + bias))``: z = 1 for an image's own caption, else -1 (SigLIP).

    Arguments as in :func:`softmax_strip`; ``bias`` is added to each scaled cosine.
    """

    def run(v: Tensor, t: Tensor, m: Tensor | None, offset: int) -> tuple[Tensor, ...]:
        shifted = alignment_logits(v, t, m, scale=scale, text_norm=text_norm) + bias
        # softplus(-x) = softplus(x) - x turns a negative pair into a positive one.
        return ((functional.softplus(shifted).sum() - own_logits(shifted, offset).sum()),)

    lines = _tiled(run, image_embeds, text_embeds, masks, first, tile)
    return torch.stack([loss for line in lines for (loss,) in line]).sum()


def _tiled(
    run: Callable[[Tensor, Tensor, Tensor | None, int], tuple[Tensor, ...]],
    images: Tensor,
    texts: Tensor,
    masks: Tensor | None,
    first: int,
    tile: int,
) -> list[list[tuple[Tensor, ...]]]:
    """``run(images, texts, masks, offset)`` for each tile, row by row; checkpointed if there are several tiles."""
    if tile < 1:
        raise UserError(f"tile must be at least 1; given {tile}.")
    height = min(len(images), max(1, int(tile**0.5) if len(images) * len(texts) > tile else len(images)))
    width = min(len(texts), max(1, tile // max(1, height)))
    several = height < len(images) or width < len(texts)
    lines = []
    for i in range(0, len(images), height):
        line = []
        for j in range(0, len(texts), width):
            inputs = images[i : i + height], texts[j : j + width], None if masks is None else masks[j : j + width]
            offset = first + i - j
            recompute = several and torch.is_grad_enabled()
            checkpointed = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
            line.append((checkpointed if recompute else run)(*inputs, offset))
        lines.append(line)
    return lines


def sparsity_loss(masks: Tensor) -> Tensor:
    """Mean magnitude of ``[B, D]`` masks: for binary masks, the fraction of dimensions that are kept."""
    return masks.abs().mean()


def hard_concrete(logits: Tensor, noise: Tensor | None, temperature: float = 2 / 3, stretch: float = 0.1) -> Tensor:
    """Masks in [0, 1] that are exactly 0 or 1 with positive probability (Louizos et al., arXiv 1712.01312, eq. 10-11).

    Args:
        logits: any shape.
        noise: uniform in (0, 1), same shape; None for the deterministic value without noise.
        temperature: lower values are closer to binary.
        stretch: the relaxed value is stretched to (-stretch, 1 + stretch), then clamped to [0, 1].
    """
    if noise is None:
        relaxed = logits.sigmoid()
    else:
        noise = noise.clamp(1e-6, 1 - 1e-6)
        relaxed = ((noise.log() - (-noise).log1p() + logits) / temperature).sigmoid()
    return (relaxed * (1 + 2 * stretch) - stretch).clamp(0, 1)


def principal_part(vectors: Tensor, components: int) -> Tensor:
    """Reconstruct normalised vectors from the top principal components of their batch (Long-CLIP, 2403.15378).

    Args:
        vectors: ``[B, D]``; normalised first.
        components: number of components; at most min(B, D) are used.

    Returns:
        ``[B, D]``: mean plus projection on the first ``components`` right singular vectors of the centred batch; not
        normalised again. With ``components`` >= B - 1 these are the normalised vectors themselves. The components
        come from :func:`main_directions`.
    """
    if components < 1:
        raise UserError(f"components must be at least 1; given {components}.")
    unit = functional.normalize(vectors.float(), dim=-1)
    mean = unit.mean(dim=0, keepdim=True)
    # The gradient through the directions has poles where singular values coincide, so they are detached. The
    # differences are small and need products in fp32.
    with torch.autocast(unit.device.type, enabled=False):
        directions = main_directions((unit - mean).detach(), components)
        return (unit - mean) @ directions @ directions.t() + mean


def main_directions(rows: Tensor, components: int, iterations: int = 16) -> Tensor:
    """``[D, k]`` orthonormal principal directions of centred rows ``[B, D]``, by orthogonal iteration.

    Unlike an SVD, products and QR do not synchronise with the GPU in every step. Directions with well-separated
    singular values are exact; nearly equal ones may be mixed with each other, and together capture at least 99 % of
    the energy that the SVD's would (see tests).

    Args:
        rows: centred rows.
        components: k; clipped to the smaller side of ``rows``.
        iterations: number of iterations.
    """
    k = min(components, *rows.shape)
    # Start from evenly spaced rows: deterministic, and they span the whole space when k is the number of rows.
    basis = rows[torch.arange(k, device=rows.device) * len(rows) // k].t()
    for _ in range(iterations):
        basis = torch.linalg.qr(rows.t() @ (rows @ torch.linalg.qr(basis).Q)).Q
    return basis

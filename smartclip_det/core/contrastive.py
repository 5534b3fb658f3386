"""Mathematics of the alignment losses (SmartCLIP, arXiv 2507.22264, section 4.2; CLIP; SigLIP, arXiv 2303.15343).

One process scores its own B images against the captions of all processes, once: the *strip* ``[B, Bg]`` of the logits.
The loss over captions of an image needs the strip alone; the loss over images of a caption needs the log-sum-exp of its
column, which processes complete with one vector of Bg numbers. No second strip, and no image ever travels.

A strip is worked off in tiles. With more than one, each is computed again in the backward pass, so that memory follows
the tile and not B x Bg; values and gradients are the same. A single tile of the softmax losses keeps its logits alone.

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

#: The released recipe uses a constant scale; ``logit_scale`` exists in its checkpoints but is not used.
SCALE = 100.0
#: Logits of one tile: 64 MiB in fp32.
TILE = 1 << 24


@dataclass
class Strip:
    """What the losses need of B images against Bg captions.

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
    """``[Bi, Bt]`` scaled similarities of images (rows) and captions (columns), each caption masking every image.

    Args:
        image_embeds: ``[Bi, D]`` projected image vectors, not normalised.
        text_embeds: ``[Bt, D]`` text vectors.
        masks: ``[Bt, D]`` caption masks, or None for plain CLIP.
        scale: factor on the cosine.
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
    """The strip of one process for the softmax losses.

    Args:
        image_embeds: ``[B, D]`` of this process.
        text_embeds: ``[Bg, D]`` of all processes, in rank order.
        masks: ``[Bg, D]``, or None.
        first: column of the first image's caption; the others follow.
        scale: factor on the cosine.
        text_norm: see :func:`masked_cosine`.
        tile: logits computed at a time.

    Raises:
        UserError: when the columns of the images are not in the strip.
    """
    if first < 0 or first + len(image_embeds) > len(text_embeds):
        raise UserError(f"{len(image_embeds)} images from column {first} on do not fit {len(text_embeds)} captions.")
    check_shapes(image_embeds, text_embeds, masks)
    masked_norm = check_choice("text_norm", text_norm, TEXT_NORMS) == "masked"
    dtype = torch.float64 if image_embeds.dtype == torch.float64 else torch.float32
    # Filled on the device: a number copied to a card is waited for.
    factor = scale.to(dtype) if isinstance(scale, Tensor) else image_embeds.new_full((), scale, dtype=dtype)

    def run(v: Tensor, t: Tensor, m: Tensor | None, offset: int) -> tuple[Tensor, ...]:
        return SoftmaxTile.apply(v, t, m, factor, offset, masked_norm)

    given = image_embeds.to(dtype), text_embeds.to(dtype), None if masks is None else masks.to(dtype)
    rows, columns, matched, total = [], [], [], given[0].new_zeros(())
    for line in _tiled(run, *given, first, tile):
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
    """Sum over a strip of ``softplus(-z (scale cos + bias))``, z = 1 for an image's own caption and -1 else (SigLIP).

    Arguments as in :func:`softmax_strip`; ``bias`` is added to each scaled cosine.
    """

    def run(v: Tensor, t: Tensor, m: Tensor | None, offset: int) -> tuple[Tensor, ...]:
        shifted = alignment_logits(v, t, m, scale=scale, text_norm=text_norm) + bias
        # softplus(-x) = softplus(x) - x turns a negative pair into a positive one.
        return ((functional.softplus(shifted).sum() - own_logits(shifted, offset).sum()),)

    lines = _tiled(run, image_embeds, text_embeds, masks, first, tile)
    return torch.stack([found for line in lines for (found,) in line]).sum()


def _tiled(
    run: Callable[[Tensor, Tensor, Tensor | None, int], tuple[Tensor, ...]],
    images: Tensor,
    texts: Tensor,
    masks: Tensor | None,
    first: int,
    tile: int,
) -> list[list[tuple[Tensor, ...]]]:
    """``run(images, texts, masks, offset)`` of each tile, as lines; computed again in backward if there are several."""
    if tile < 1:
        raise UserError(f"tile must be at least 1; given {tile}.")
    high = min(len(images), max(1, int(tile**0.5) if len(images) * len(texts) > tile else len(images)))
    wide = min(len(texts), max(1, tile // max(1, high)))
    several = high < len(images) or wide < len(texts)
    lines = []
    for i in range(0, len(images), high):
        line = []
        for j in range(0, len(texts), wide):
            given = images[i : i + high], texts[j : j + wide], None if masks is None else masks[j : j + wide]
            offset = first + i - j
            again = several and torch.is_grad_enabled()
            recompute = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
            line.append((recompute if again else run)(*given, offset))
        lines.append(line)
    return lines


def sparsity_loss(masks: Tensor) -> Tensor:
    """Mean magnitude of ``[B, D]`` masks: the share of dimensions that a caption keeps."""
    return masks.abs().mean()


def hard_concrete(logits: Tensor, noise: Tensor | None, temperature: float = 2 / 3, stretch: float = 0.1) -> Tensor:
    """Masks in [0, 1] that are exactly 0 or 1 with positive probability (Louizos et al., arXiv 1712.01312, eq. 10-11).

    Args:
        logits: any shape.
        noise: uniform in (0, 1), same shape; None for the middle of the distribution.
        temperature: the lower, the nearer to binary.
        stretch: the relaxed value is stretched to (-stretch, 1 + stretch) before it is cut.
    """
    if noise is None:
        relaxed = logits.sigmoid()
    else:
        noise = noise.clamp(1e-6, 1 - 1e-6)
        relaxed = ((noise.log() - (-noise).log1p() + logits) / temperature).sigmoid()
    return (relaxed * (1 + 2 * stretch) - stretch).clamp(0, 1)


def principal_part(vectors: Tensor, components: int) -> Tensor:
    """Normalised vectors rebuilt from the main directions of their batch (Long-CLIP, arXiv 2403.15378, section 3.2).

    Args:
        vectors: ``[B, D]``; normalised first.
        components: directions kept, at most B and D.

    Returns:
        ``[B, D]``: mean plus projection on the first ``components`` right singular vectors of the centred batch; not
        normalised again. With ``components`` of at least B - 1 it gives the normalised vectors back. The directions are
        those of :func:`main_directions`.
    """
    if components < 1:
        raise UserError(f"components must be at least 1; given {components}.")
    unit = functional.normalize(vectors.float(), dim=-1)
    mean = unit.mean(dim=0, keepdim=True)
    # Directions without gradient: it has poles where singular values meet. Small differences: products in fp32.
    with torch.autocast(unit.device.type, enabled=False):
        kept = main_directions((unit - mean).detach(), components)
        return (unit - mean) @ kept @ kept.t() + mean


def main_directions(rows: Tensor, components: int, iterations: int = 16) -> Tensor:
    """``[D, k]`` orthonormal: main directions of centred rows ``[B, D]``, by orthogonal iteration.

    An SVD makes the host wait for a card in every step; products and QR do not. Directions whose singular values are
    apart are exact; among those that are nearly equal any will do, since they hold as much of the rows: together at
    least 99 % of the squares that an SVD's would hold (tests).

    Args:
        rows: centred.
        components: k, cut to the smaller side of the rows.
        iterations: products with the rows and back.
    """
    k = min(components, *rows.shape)
    # Every few rows as a start: no random numbers are drawn, and it spans all when k is the number of rows.
    basis = rows[torch.arange(k, device=rows.device) * len(rows) // k].t()
    for _ in range(iterations):
        basis = torch.linalg.qr(rows.t() @ (rows @ torch.linalg.qr(basis).Q)).Q
    return basis

"""Masked cosine: the SmartCLIP score (arXiv 2507.22264, section 4) in two matrix products.

``score(image, text) = cos(v * m(t), t)`` for R image or region vectors and K texts is

    N = V (M * T)^t,   Q = (V * V) (M * M)^t,   S = N / sqrt(Q),

with T normalised. No R x K x D tensor is materialised. ``M * M`` is needed even for binary masks: the values
equal those with ``M``, but the straight-through gradient to the mask logits does not.

Shape letters: R image or region vectors, K texts, D joint embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.mask_modes import MASK_MODES
from smartclip_det.core.words import TEXT_NORMS

#: Modes that work for any batch of texts; ``shuffled`` depends on the other texts in the batch.
OWN_MASK_MODES = tuple(m for m in MASK_MODES if m != "shuffled")
#: Scores with a smaller squared masked norm are defined as 0 (vectors are scaled so that their largest entry is 1).
EPS = 1e-12


class DegenerateCounter:
    """Counts scores that were set to 0 because the mask removed (almost) all of the image vector.

    Counts stay on the device until :meth:`read`, so counting does not synchronise with the GPU.
    """

    def __init__(self) -> None:
        self._degenerate: Tensor | None = None
        self._total = 0

    def add(self, valid: Tensor) -> None:
        """Add one ``[R, K]`` boolean tensor, False where a score was set to 0."""
        count = (~valid).sum()
        self._degenerate = count if self._degenerate is None else self._degenerate + count
        self._total += valid.numel()

    def read(self) -> tuple[int, int]:
        """Return ``(degenerate, total)`` scores since the last call, and reset the counts."""
        degenerate = 0 if self._degenerate is None else int(self._degenerate.item())
        total, self._degenerate, self._total = self._total, None, 0
        return degenerate, total


def _full_precision(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _unit_range(x: Tensor) -> Tensor:
    """Divide each row by its detached max-abs: cosines are unaffected, and squares do not overflow in fp32."""
    if x.shape[-1] == 0:
        return x
    peak = x.detach().abs().amax(dim=-1, keepdim=True)
    return x / torch.where(peak > 0, peak, torch.ones_like(peak))


def check_shapes(image_embeds: Tensor, text_embeds: Tensor, masks: Tensor | None) -> None:
    """Raise UserError unless the shapes are ``[R, D]``, ``[K, D]`` and ``[K, D]``."""
    if image_embeds.dim() != 2 or text_embeds.dim() != 2 or image_embeds.shape[1] != text_embeds.shape[1]:
        raise UserError(
            "image_embeds must be [R, D] and text_embeds [K, D] with the same D; given "
            f"{list(image_embeds.shape)} and {list(text_embeds.shape)}."
        )
    if masks is not None and masks.shape != text_embeds.shape:
        raise UserError(
            f"masks must have the shape of text_embeds {list(text_embeds.shape)}; given {list(masks.shape)}."
        )


def _text_weights(text_embeds: Tensor, masks: Tensor | None, text_norm: str) -> tuple[Tensor, Tensor]:
    """``[K, D]`` numerator weights ``M * T / norm``, and ``[K]`` bool: True for texts with a nonzero norm."""
    text = _unit_range(text_embeds)
    weights = text if masks is None else text * masks
    normed = weights if text_norm == "masked" else text
    square = (normed * normed).sum(dim=-1)
    valid = ~(square <= EPS)
    norm = torch.where(valid, square, torch.ones_like(square)).sqrt()
    return weights / norm.unsqueeze(-1), valid


def masked_cosine(
    image_embeds: Tensor,
    text_embeds: Tensor,
    masks: Tensor | None = None,
    *,
    text_norm: str = "full",
    chunk_size: int | None = None,
    counter: DegenerateCounter | None = None,
) -> Tensor:
    """Cosine of each masked image vector with each text (arXiv 2507.22264, section 4).

    Computed in fp32 (fp64 for fp64 input) regardless of autocast. Where the masked image vector or the text has no
    length, the score is 0 and so is its gradient; a clamp would send a huge gradient to the masks.

    Args:
        image_embeds: ``[R, D]`` projected image or region vectors, not normalised.
        text_embeds: ``[K, D]`` text vectors of any length.
        masks: ``[K, D]`` in [0, 1], or None for the plain cosine (equal to a mask of ones).
        text_norm: ``full`` divides by ``|t|`` (the published score); ``masked`` divides by ``|t * m|``, which removes
            the ceiling ``|t * m| / |t|`` of each text. Scores are in [-1, 1] for binary masks only.
        chunk_size: number of texts per product, to bound memory; None: all at once.
        counter: counts the scores that are set to 0.

    Returns:
        ``[R, K]`` cosines in [-1, 1]; empty if R or K is 0.

    Raises:
        UserError: for mismatched shapes or an unknown ``text_norm``.
    """
    check_choice("text_norm", text_norm, TEXT_NORMS)
    check_shapes(image_embeds, text_embeds, masks)
    if chunk_size is not None and chunk_size < 1:
        raise UserError(f"chunk_size must be at least 1; given {chunk_size}.")
    with torch.autocast(image_embeds.device.type, enabled=False):
        image = _unit_range(_full_precision(image_embeds))
        texts = _full_precision(text_embeds).to(image.dtype)
        gates = None if masks is None else masks.to(image.dtype)
        if chunk_size is None:
            return _masked_cosine_block(image, texts, gates, text_norm, counter)
        pieces = texts.split(chunk_size)
        masked = [None] * len(pieces) if gates is None else gates.split(chunk_size)
        parts = [_masked_cosine_block(image, t, m, text_norm, counter) for t, m in zip(pieces, masked, strict=True)]
        return torch.cat(parts, dim=1)


def _masked_cosine_block(
    image: Tensor, texts: Tensor, masks: Tensor | None, text_norm: str, counter: DegenerateCounter | None
) -> Tensor:
    weights, text_valid = _text_weights(texts, masks, text_norm)
    numerator = image @ weights.t()
    if masks is None:
        square = (image * image).sum(dim=-1, keepdim=True).expand_as(numerator)
    else:
        square = (image * image) @ (masks * masks).t()
    # The negation treats NaN as valid and keeps it: a diverged model must not score clean zeros.
    valid = ~(square <= EPS) & text_valid
    if counter is not None:
        counter.add(valid)
    safe = torch.where(valid, square, torch.ones_like(square))
    # Divide by 1 where the masked vector is zero, then select: both value and gradient are 0 there.
    return torch.where(valid, numerator * safe.rsqrt(), torch.zeros_like(numerator))


def paired_masked_cosine(vectors: Tensor, text_embeds: Tensor, masks: Tensor | None = None) -> Tensor:
    """Cosine of each text with its own N vectors; :func:`masked_cosine` scores all pairs.

    Args:
        vectors: ``[K, N, D]`` N vectors per text, of any length.
        text_embeds: ``[K, D]``.
        masks: ``[K, D]`` in [0, 1], or None for the plain cosine.

    Returns:
        ``[K, N]`` cosines in [-1, 1], in fp32; 0 where a masked vector or a text has no length.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        texts = _full_precision(text_embeds)
        rows = _full_precision(vectors)
        rows = rows if masks is None else rows * masks.to(rows.dtype).unsqueeze(1)
        norms = rows.norm(dim=-1) * texts.norm(dim=-1, keepdim=True)
        safe = norms > torch.finfo(norms.dtype).tiny ** 0.5
        dots = torch.einsum("knd,kd->kn", rows, texts)
        return torch.where(safe, dots / torch.where(safe, norms, torch.ones_like(norms)), torch.zeros_like(dots))


def masked_dot(image_embeds: Tensor, text_embeds: Tensor, masks: Tensor | None = None) -> Tensor:
    """Numerator of the masked cosine: ``[R, K]`` products of image vectors with ``m * t / |t|``.

    This is NOT the SmartCLIP score. It is for heads that do not normalise the image side per region, such as a single
    1x1 convolution at inference. A zero text gives 0.
    """
    check_shapes(image_embeds, text_embeds, masks)
    with torch.autocast(image_embeds.device.type, enabled=False):
        image = _full_precision(image_embeds)
        texts = _full_precision(text_embeds).to(image.dtype)
        weights, valid = _text_weights(texts, None if masks is None else masks.to(image.dtype), "full")
        return (image @ weights.t()) * valid


def binary_masks(probs: Tensor) -> Tensor:
    """Binary masks ``1[p >= 0.5]`` of probabilities, in their shape and floating-point type (fp32 for integers)."""
    return (probs >= 0.5).to(probs.dtype if probs.is_floating_point() else torch.float32)


def straight_through(probs: Tensor) -> Tensor:
    """:func:`binary_masks` in the forward pass, gradient of ``p`` in the backward pass; shape of ``probs``."""
    hard = binary_masks(probs)
    # The order matters: (hard + p) - p would round, this is exactly 0 or 1.
    return hard + (probs - probs.detach())


def mask_ceiling(text_embeds: Tensor, masks: Tensor) -> Tensor:
    """``[K]`` largest cosine ``c_k = |t * m| / |t|`` that each masked text can reach (binary masks)."""
    text = _unit_range(_full_precision(text_embeds))
    norm = text.norm(dim=-1)
    return (text * masks).norm(dim=-1) / torch.where(norm > 0, norm, torch.ones_like(norm))


def text_seed(text: str, salt: str = "") -> int:
    """A 63-bit seed derived from the text only, so that controls are reproducible across machines."""
    return int.from_bytes(hashlib.sha256(f"{salt}\0{text}".encode()).digest()[:8], "big") >> 1


def resolve_masks(
    masks: Tensor,
    mode: str,
    texts: Sequence[str],
    probs: Tensor | None = None,
    class_index: Tensor | None = None,
) -> Tensor | None:
    """``[K, D]`` masks for a mask mode, or None for ``off``.

    Args:
        masks: ``[K, D]`` masks or mask probabilities in [0, 1].
        mode: ``hard`` (binary), ``soft`` (probabilities) or ``off``. Controls: ``random`` (as many active dimensions as
            the hard mask, drawn from the text's hash), ``shuffled`` (the hard mask of another text, always of another
            class; fixed by the texts).
        texts: the K row texts.
        probs: ``[K, D]`` probabilities of ``masks``, used by ``soft``; default: ``masks``.
        class_index: ``[K]`` class of each row; default: each row is a class.

    Raises:
        UserError: for an unknown mode, or ``shuffled`` with a single class.
    """
    check_choice("mask_mode", mode, MASK_MODES)
    if len(texts) != len(masks):
        raise UserError(f"{len(masks)} masks but {len(texts)} texts.")
    if mode == "off":
        return None
    if mode == "soft":
        return masks if probs is None else probs
    hard = binary_masks(masks)
    if mode == "hard":
        return hard
    if mode == "random":
        return (
            torch.stack([_random_like(row, text) for row, text in zip(hard, texts, strict=True)])
            if len(texts)
            else hard
        )
    return hard[donor_rows(texts, class_index).to(hard.device)]


def donor_rows(texts: Sequence[str], class_index: Tensor | None) -> Tensor:
    """``[K]`` source row of each row in shuffled controls: from the next class in an order fixed by the texts."""
    rows_of: dict[int, list[int]] = {}
    for row, c in enumerate(range(len(texts)) if class_index is None else class_index.tolist()):
        rows_of.setdefault(c, []).append(row)
    if len(rows_of) == 1:
        raise UserError(
            "mask_mode='shuffled' and shuffled texts need at least two classes: with one there is none to swap with."
        )
    # A cyclic shift of the hash order is a derangement and does not depend on the order of the rows.
    order = sorted(rows_of, key=lambda c: (text_seed(texts[rows_of[c][0]], "shuffled"), c))
    donor = torch.empty(len(texts), dtype=torch.long)
    for c, following in zip(order, order[1:] + order[:1], strict=True):
        for n, row in enumerate(rows_of[c]):
            donor[row] = rows_of[following][n % len(rows_of[following])]
    return donor


def _random_like(row: Tensor, text: str) -> Tensor:
    generator = torch.Generator().manual_seed(text_seed(text, "random"))
    chosen = torch.randperm(row.numel(), generator=generator)[: int(row.sum().item())]
    out = torch.zeros_like(row)
    out[chosen.to(row.device)] = 1
    return out

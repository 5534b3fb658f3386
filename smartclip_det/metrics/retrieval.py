"""Image-text retrieval and zero-shot presence, from saved vectors (protocols of Long-CLIP, arXiv 2403.15378).

Shape letters: I images, K texts, C classes, D joint embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smartclip_det.core.errors import UserError
from smartclip_det.core.mask_modes import RETRIEVAL_MODES, mask_mode
from smartclip_det.core.similarity import masked_cosine, resolve_masks
from smartclip_det.formats.retrieval_vectors import RetrievalVectors

#: Cut-offs of recall.
RECALLS = (1, 5, 10)


def text_ranks(similarity: Tensor, image_of_text: Tensor) -> Tensor:
    """``[K]`` rank (0 is best) of each text's own image among all images; ties are ranked last.

    Args:
        similarity: ``[I, K]``.
        image_of_text: ``[K]`` row of each text's image.
    """
    own = similarity.gather(0, image_of_text.unsqueeze(0))
    # Not "less than", rather than "greater or equal": NaN is ranked last, too.
    return (~(similarity < own)).sum(dim=0) - 1


def retrieval_metrics(
    image_embeds: Tensor,
    text_embeds: Tensor,
    masks: Tensor | None,
    image_of_text: Tensor,
    *,
    recalls: Sequence[int] = RECALLS,
    chunk_size: int = 4096,
) -> dict[str, float]:
    """``t2i_r1``, ``i2t_r1``, ... as fractions in [0, 1].

    Args:
        image_embeds: ``[I, D]``, not normalised.
        text_embeds: ``[K, D]``.
        masks: ``[K, D]`` for masked scoring (each text's own mask on every image), None for plain cosine.
        image_of_text: ``[K]`` row of each text's image.
        recalls: cut-offs.
        chunk_size: texts per product.

    Raises:
        UserError: if there are no texts.
    """
    t2i, i2t = retrieval_ranks(image_embeds, text_embeds, masks, image_of_text, chunk_size=chunk_size)
    out = {f"t2i_r{k}": float((t2i < k).double().mean()) for k in recalls}
    out.update({f"i2t_r{k}": float((i2t < k).double().mean()) for k in recalls})
    return out


def retrieval_ranks(
    image_embeds: Tensor,
    text_embeds: Tensor,
    masks: Tensor | None,
    image_of_text: Tensor,
    *,
    chunk_size: int = 4096,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Exact ranks (0 is best) without the full ``I x K`` score matrix.

    Two passes over chunks of texts: the first computes the score of each text's own image and each image's best own
    score, the second counts the other texts that reach it. Both compute chunks identically, so ties are exact.

    Args:
        image_embeds: ``[I, D]``, not normalised.
        text_embeds: ``[K, D]``.
        masks: ``[K, D]``, or None.
        image_of_text: ``[K]`` row of each text's image.
        chunk_size: texts per product.
        progress: show a bar.

    Returns:
        ``[K]`` ranks of the texts' images, and ``[I']`` ranks of the best own text of each image that has one.
    """
    from tqdm import tqdm

    if not len(text_embeds):
        raise UserError("Retrieval needs at least one text.")
    starts = range(0, len(text_embeds), chunk_size)
    bar = tqdm(total=2 * len(text_embeds), desc="retrieval", unit="text", disable=not progress)

    def scores(start: int) -> tuple[Tensor, Tensor, slice]:
        part = slice(start, min(start + chunk_size, len(text_embeds)))
        bar.update(part.stop - part.start)
        found = masked_cosine(image_embeds, text_embeds[part], None if masks is None else masks[part])
        return found, image_of_text[part], part

    t2i = torch.empty(len(text_embeds), dtype=torch.long)
    best = torch.full((len(image_embeds),), float("-inf"), dtype=torch.float64)
    for start in starts:
        similarity, owner, part = scores(start)
        t2i[part] = text_ranks(similarity, owner).cpu()
        own = similarity.gather(0, owner.unsqueeze(0)).squeeze(0).double().cpu()
        best.scatter_reduce_(0, owner.cpu(), own, "amax")
    above = torch.zeros(len(image_embeds), dtype=torch.long)
    for start in starts:
        similarity, owner, _ = scores(start)
        reached = ~(similarity.double().cpu() < best.unsqueeze(1))
        reached[owner.cpu(), torch.arange(len(owner))] = False
        above += reached.sum(dim=1)
    bar.close()
    return t2i, above[torch.unique(image_of_text.cpu())]


def modes_of(vectors: RetrievalVectors) -> list[str]:
    """Mask modes available for scoring; all but ``off`` need masks."""
    return ["off"] if vectors.masks is None else list(RETRIEVAL_MODES)


def ranks_of(vectors: RetrievalVectors, mode: str, *, progress: bool = False) -> tuple[Tensor, Tensor]:
    """``[K]`` text-to-image and ``[I']`` image-to-text ranks with a mask mode."""
    mode = mask_mode(mode, RETRIEVAL_MODES, "scoring")
    if vectors.masks is None and mode != "off":
        raise UserError(f"scoring {mode!r} needs masks; these vectors have none (encoded without a mask network).")
    masks = None if vectors.masks is None else resolve_masks(vectors.masks, mode, vectors.sentences)
    return retrieval_ranks(vectors.images, vectors.texts, masks, vectors.owner, progress=progress)


def recall_metrics(vectors: RetrievalVectors, modes: Sequence[str], *, progress: bool = False) -> dict[str, float]:
    """``t2i_r1_off``, ``i2t_r5_hard``, ... as fractions in [0, 1]."""
    out: dict[str, float] = {}
    for mode in modes:
        for direction, ranks in zip(("t2i", "i2t"), ranks_of(vectors, mode, progress=progress), strict=True):
            out.update({f"{direction}_r{k}_{mode}": float((ranks < k).double().mean()) for k in RECALLS})
    return out


def retrieval_metric(vectors: RetrievalVectors, mode: str) -> tuple[Any, int]:
    """Recalls as a function of image weights, and the number of images, for the paired bootstrap."""
    t2i, i2t = (r.numpy() for r in ranks_of(vectors, mode))
    owner = vectors.owner.numpy()
    having = np.unique(owner)

    def metric(weights: np.ndarray) -> Mapping[str, float]:
        of_texts, of_images = weights[owner].astype(float), weights[having].astype(float)
        out = {f"t2i_r{k}": float((of_texts * (t2i < k)).sum() / of_texts.sum()) for k in RECALLS}
        out.update({f"i2t_r{k}": float((of_images * (i2t < k)).sum() / of_images.sum()) for k in RECALLS})
        return out

    return metric, len(vectors.images)

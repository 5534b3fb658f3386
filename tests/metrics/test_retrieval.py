"""Retrieval ranks and average precision, by hand."""

from __future__ import annotations

import pytest
import torch

from smartclip_det.core.errors import UserError
from smartclip_det.core.similarity import masked_cosine
from smartclip_det.metrics.retrieval import (
    retrieval_metrics,
    retrieval_ranks,
    text_ranks,
)


def test_ranks_by_hand_with_ties_against_us():
    similarity = torch.tensor([[0.9, 0.2, 0.5], [0.9, 0.8, 0.1], [0.1, 0.3, 0.6]])
    owner = torch.tensor([0, 0, 2])
    # Text 0 ties with image 1; text 1 ranks below images 1 and 2; text 2 is first.
    assert text_ranks(similarity, owner).tolist() == [1, 2, 0]


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_chunks_give_the_ranks_of_the_whole_matrix(chunk):
    g = torch.Generator().manual_seed(0)
    images, texts = torch.randn(7, 6, generator=g).round(), torch.randn(11, 6, generator=g).round()
    masks = (torch.rand(11, 6, generator=g) < 0.6).float()
    # Image 5 has no text; rounding makes ties.
    owner = torch.tensor([0, 0, 1, 2, 3, 4, 6, 6, 1, 2, 0])
    t2i, i2t = retrieval_ranks(images, texts, masks, owner, chunk_size=chunk)
    scores = masked_cosine(images, texts, masks)
    for k in range(11):
        others = [i for i in range(7) if i != owner[k]]
        assert t2i[k] == sum(bool(scores[i, k] >= scores[owner[k], k]) for i in others)
    for row, i in enumerate([0, 1, 2, 3, 4, 6]):
        own = [k for k in range(11) if owner[k] == i]
        best = max(scores[i, k] for k in own)
        assert i2t[row] == sum(bool(scores[i, k] >= best) for k in range(11) if k not in own)
    assert len(i2t) == 6


def test_masked_scores_use_each_texts_own_mask():
    images = torch.tensor([[1.0, 0.0, 5.0], [0.0, 1.0, 5.0]])
    texts = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    masks = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    found = retrieval_metrics(images, texts, masks, torch.arange(2), chunk_size=1)
    assert found["t2i_r1"] == found["i2t_r1"] == 1.0
    swapped = retrieval_metrics(images, texts, masks, torch.tensor([1, 0]))
    assert swapped["t2i_r1"] == 0.0
    assert swapped["t2i_r5"] == 1.0
    with pytest.raises(UserError, match="at least one text"):
        retrieval_metrics(images, texts[:0], None, torch.arange(0))


def test_a_diverged_model_finds_nothing():
    images, texts = torch.randn(12, 4), torch.randn(12, 4)
    for bad in ((images * float("nan"), texts), (images, texts * float("nan"))):
        found = retrieval_metrics(*bad, None, torch.arange(12))
        assert found["t2i_r10"] == found["i2t_r10"] == 0.0
    some = images.clone()
    some[3] = float("nan")
    t2i, i2t = retrieval_ranks(some, texts, None, torch.arange(12))
    assert (t2i[3], i2t[3]) == (11, 11)
    assert len(i2t) == 12

"""Retrieval ranks and average precision, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from smartclip_det.core.errors import UserError
from smartclip_det.evaluation.retrieval import (
    average_precision,
    image_ranks,
    presence_map,
    retrieval_metrics,
    text_ranks,
)


def test_ranks_by_hand_with_ties_against_us():
    similarity = torch.tensor([[0.9, 0.2, 0.5], [0.9, 0.8, 0.1], [0.1, 0.3, 0.6]])
    owner = torch.tensor([0, 0, 2])
    # Text 0 ties with image 1; text 1 is behind images 1 and 2; text 2 is first.
    assert text_ranks(similarity, owner).tolist() == [1, 2, 0]
    # Image 0's best own text scores 0.9, others 0.5; image 1 has no text; image 2's own 0.6 is best.
    assert image_ranks(similarity, owner).tolist() == [0, 0]
    tied = torch.full((2, 2), 0.5)
    assert image_ranks(tied, torch.tensor([0, 1])).tolist() == [1, 1]


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


def test_average_precision_by_hand():
    assert average_precision(np.array([1, 0, 1, 0], bool), np.array([0.9, 0.8, 0.7, 0.6])) == pytest.approx(5 / 6)
    # Equal scores are one threshold: both orders give the same.
    assert average_precision(np.array([1, 0], bool), np.array([0.5, 0.5])) == 0.5
    assert average_precision(np.array([0, 1], bool), np.array([0.5, 0.5])) == 0.5
    assert average_precision(np.zeros(3, bool), np.arange(3.0)) == -1
    assert presence_map(np.array([[1, 0], [0, 0]], bool), np.array([[0.1, 0.2], [0.3, 0.4]])) == 0.5


def test_a_perfect_order_is_one_and_a_constant_score_is_the_share():
    rng = np.random.default_rng(0)
    present = rng.random(200) < 0.2
    assert average_precision(present, present.astype(float)) == 1.0
    assert average_precision(present, np.zeros(200)) == pytest.approx(present.mean())

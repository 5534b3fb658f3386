"""Chunked vocabularies: the same scores and detections as unchunked, for every policy; 100,000 names work."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smartclip_det.core.fusion import FUSIONS
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank
from smartclip_det.models.roi_heads.chunked_scorer import ChunkedScorer
from smartclip_det.models.roi_heads.open_vocab_bbox_head import OpenVocabBBoxHead
from smartclip_det.models.selection import select_detections, select_from_parts

D = 16


def bank_of(classes, rows_each=1, seen=True):
    g = torch.Generator().manual_seed(0)
    count = classes * rows_each
    probs = torch.rand(count, D, generator=g)
    background = TextBank(("background",), torch.randn(1, D, generator=g), torch.ones(1, D))
    bank = TextBank(
        tuple(f"class {k}" for k in range(classes)),
        torch.randn(count, D, generator=g),
        (probs > 0.4).float(),
        texts=tuple(f"text {k}" for k in range(count)),
        class_index=torch.arange(count) % classes,
        mask_probs=probs,
        background=background,
    )
    return bank if seen else bank.with_seen(bank.names[::3])


def regions(count=40):
    g = torch.Generator().manual_seed(1)
    return torch.randn(count, D, generator=g), torch.randn(count, D, generator=g), torch.rand(count, generator=g)


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    return OpenVocabBBoxHead(embed_dim=D, in_channels=4, roi_size=1, num_convs=0, fc_channels=8, norm_cfg=None)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("mode", ["hard", "off", "random", "shuffled"])
def test_pieces_score_like_the_whole(head, fusion, activation, mode):
    vectors, dense, objectness = regions()
    policy = ScoringPolicy(mask_mode=mode, fusion=fusion, activation=activation, temperature=5.0, dense_temperature=4.0)
    for bank in (bank_of(23, seen=False), bank_of(9, rows_each=3)):
        scorer = ChunkedScorer(head, vectors, dense, objectness, policy)
        whole = scorer.scores(bank, *scorer.totals([bank]))
        parts = bank.parts(4)
        assert [len(p) for p in parts] == [4] * (len(bank) // 4) + ([len(bank) % 4] if len(bank) % 4 else [])
        totals = scorer.totals(parts)
        pieces = torch.cat([scorer.scores(p, *totals) for p in parts], dim=1)
        assert torch.allclose(pieces, whole, atol=1e-6), (pieces - whole).abs().max()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 7), st.sampled_from([3, 50]), st.integers(1, 40))
def test_pieces_select_like_the_whole_with_ties(seed, classes, size, levels, limit):
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(25, 2, generator=g) * 40
    boxes = torch.cat([corner, corner + 5 + torch.rand(25, 2, generator=g) * 30], dim=1)
    scores = torch.randint(0, levels, (25, classes), generator=g) / levels
    options = {"score_threshold": 0.1, "iou_threshold": 0.5, "max_detections": limit}
    expected = select_detections(boxes, scores, **options)
    got = select_from_parts(boxes, lambda: scores.split(size, dim=1), **options)
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a, b)


def test_two_hundred_thousand_names_in_bounded_memory(head):
    """1,000 regions x 200,000 names are 763 MiB per matrix; with chunks of 2,048 they never exist at once.

    The margin is for memory of the process that the system had reclaimed before.
    """
    from smartclip_det.studies.benchmarks.measuring import PeakMemory

    bank = bank_of(200_000)
    vectors, dense, objectness = regions(1000)
    policy = ScoringPolicy(fusion="f_vit", temperature=5.0)
    boxes = torch.rand(1000, 2) * 500
    boxes = torch.cat([boxes, boxes + 40], dim=1)
    parts = bank.parts(2048)
    scorer = ChunkedScorer(head, vectors, dense, objectness, policy)
    with PeakMemory() as memory, torch.no_grad():
        totals = scorer.totals(parts)
        rows, classes, _ = select_from_parts(
            boxes,
            lambda: (scorer.scores(p, *totals) for p in parts),
            score_threshold=0.0,
            iou_threshold=0.5,
            max_detections=300,
        )
    assert len(rows) == 300
    assert classes.max() > 4096
    assert memory.mib < 763

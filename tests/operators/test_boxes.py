"""NMS against loops over numbers, with ties and boxes without area."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smartclip_det.operators import boxes as ops
from tests.operators import reference

#: Integers and few scores: many equal boxes, tied scores, touching and empty boxes.
ROWS = st.lists(
    st.tuples(*[st.integers(0, 9)] * 2, *[st.integers(0, 6)] * 2, st.integers(1, 8)), min_size=0, max_size=14
)


def tensors(rows, dtype=torch.float64):
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h, _ in rows], dtype=dtype).view(-1, 4)
    return boxes, torch.tensor([r[4] / 8 for r in rows], dtype=dtype)


@settings(max_examples=150, deadline=None)
@given(ROWS, st.sampled_from([0.1, 0.31, 0.77]), st.sampled_from([0, 1]))
def test_nms(rows, threshold, offset):
    boxes, scores = tensors(rows)
    assert ops.nms(boxes, scores, threshold, offset).tolist() == reference.nms(
        boxes.tolist(), scores.tolist(), threshold, offset
    )


@settings(max_examples=200, deadline=None)
@given(ROWS, st.sampled_from([0, 1, 2]), st.sampled_from([0, 1]), st.sampled_from([0.0, 0.13, 0.4]))
def test_soft_nms_writes_scores_and_order_as_mmcv_does(rows, method, offset, min_score):
    boxes, scores = tensors(rows)
    dets = torch.full((len(rows), 5), -7.0, dtype=torch.float64)
    before = boxes.clone(), scores.clone()
    kept = ops.softnms(boxes, scores, dets, 0.31, 0.5, min_score, method, offset)
    expected, indices = reference.soft_nms(boxes.tolist(), scores.tolist(), 0.31, 0.5, min_score, method, offset)
    if any(np.isnan(r[4]) for r in expected):
        return  # two empty boxes at one position: 0 / 0 in mmcv as well
    assert kept.tolist() == indices
    np.testing.assert_allclose(dets[: len(kept)].numpy().reshape(-1, 5), np.array(expected).reshape(-1, 5), rtol=1e-12)
    assert bool((dets[len(kept) :] == -7).all())
    assert torch.equal(boxes, before[0])
    assert torch.equal(scores, before[1])


@settings(max_examples=100, deadline=None)
@given(ROWS, st.sampled_from([0.2, 0.5]))
def test_nms_match(rows, threshold):
    boxes, scores = tensors(rows)
    groups = ops.nms_match(torch.cat([boxes, scores[:, None]], dim=1), threshold)
    assert groups == reference.nms_match(boxes.tolist(), scores.tolist(), threshold)


def test_a_threshold_is_compared_in_single_precision():
    """IoU 0.3 exactly: float32(0.3) exceeds the double 0.3, and mmcv keeps the box."""
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1]])
    assert ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.3, 0).tolist() == [0, 1]
    assert ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.29, 0).tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_strides(dtype):
    boxes, scores = tensors([(1, 1, 5, 5, 8), (1, 1, 5, 5, 4), (7, 7, 2, 2, 6)], dtype)
    wide = torch.cat([boxes, boxes], dim=1)[:, :4]
    assert not wide.is_contiguous()
    assert ops.nms(wide, scores, 0.5, 0).tolist() == [0, 2]
    dets = torch.empty(3, 5, dtype=dtype)
    assert ops.softnms(wide, scores, dets, 0.5, 0.5, 0.1, 0, 0).tolist() == [0, 2]
    assert ops.nms_match(torch.cat([boxes, scores[:, None]], 1), 0.5) == [[0, 1], [2]]


def test_scores_that_are_no_number_neither_win_nor_stop():
    boxes = torch.tensor([[0.0, 0, 4, 4], [10, 10, 14, 14], [20, 20, 24, 24]])
    dets = torch.empty(3, 5)
    kept = ops.softnms(boxes, torch.tensor([0.5, torch.nan, 0.9]), dets, 0.5, 0.5, 0.0, 1, 0)
    assert kept.tolist()[0] == 2
    assert sorted(kept.tolist()) == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from([0, 1]), st.sampled_from([0, 1]), st.booleans())
def test_overlaps(rows, mode, offset, aligned):
    first = tensors(rows)[0]
    second = first.flip(0)
    ious = first.new_zeros(len(rows) if aligned else (len(rows), len(rows)))
    ops.bbox_overlaps(first, second, ious, mode, aligned, offset)
    for i, a in enumerate(first.tolist()):
        for j, b in enumerate(second.tolist()):
            if aligned and i != j:
                continue
            area = (a[2] - a[0] + offset) * (a[3] - a[1] + offset)
            other = (b[2] - b[0] + offset) * (b[3] - b[1] + offset)
            by_union = reference.iou(a, b, offset)
            shared = by_union / (1 + by_union) * (area + other)
            expected = by_union if mode == 0 else shared / area if area else np.nan
            got = float(ious[i] if aligned else ious[i, j])
            assert got == pytest.approx(expected, nan_ok=True) or (area == 0 and np.isnan(got))

"""Pooled ranking of all detections, false alarms at equal recall, and "none" at equal target recall."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from smartclip_det.core.errors import UserError
from smartclip_det.metrics.absent_names import PooledDetections, match_boxes, none_accuracy, none_metric
from smartclip_det.metrics.bootstrap import paired_bootstrap

BOX = [0.0, 0.0, 10.0, 10.0]
FAR = [50.0, 50.0, 60.0, 60.0]


def test_matches_by_hand():
    objects, classes = torch.tensor([BOX, FAR]), torch.tensor([3, 3])
    boxes = torch.tensor([BOX, BOX, FAR, [0.0, 0.0, 10.0, 4.0]])
    assert match_boxes(boxes, torch.tensor([3, 3, 3, 3]), objects, classes).tolist() == [True, False, True, False]
    assert match_boxes(boxes, torch.tensor([3, 3, 4, 3]), objects, classes).tolist() == [True, False, False, False]
    assert match_boxes(boxes[:0], torch.tensor([]), objects, classes).tolist() == []
    assert match_boxes(boxes, torch.zeros(4), objects[:0], classes[:0]).tolist() == [False] * 4


def image(scores, hits, absent, foreign):
    return {
        "scores": np.array(scores, float),
        "hits": np.array(hits, bool),
        "absent": np.array(absent, bool),
        "foreign": np.array(foreign, bool),
    }


def test_pooled_facts_by_hand():
    rows = [image([0.9, 0.8, 0.2], [1, 0, 0], [0, 1, 1], [0, 1, 0]), image([0.7, 0.5], [1, 0], [0, 1], [0, 1])]
    found = PooledDetections.cat(rows, [1, 2])
    facts = found.facts()
    # Hits at ranks 1 and 3 of three objects: 1/3 at precision 1, 1/3 at 2/3.
    assert facts["ap50_pooled"] == pytest.approx((1 + 2 / 3) / 3)
    # Half of the objects are found at score 0.7, where one absent name scores higher; recall 0.7 is never reached.
    assert facts["absent_per_image_r0.5"] == facts["foreign_per_image_r0.5"] == 0.5
    assert facts["absent_per_image_r0.7"] == -1
    # An image drawn twice counts twice.
    doubled = PooledDetections.cat([rows[0], rows[1], rows[1]], [1, 2, 2])
    assert found.ap(np.array([1.0, 2.0])) == pytest.approx(doubled.ap())
    with pytest.raises(UserError, match="nothing to detect"):
        PooledDetections.cat(rows, [0, 0])


def test_absent_names_lower_what_class_wise_precision_cannot_see():
    sure = image([0.9], [1], [0], [0])
    loud = image([0.95, 0.9], [0, 1], [1, 0], [1, 0])
    assert PooledDetections.cat([sure], [1]).ap() == 1
    assert PooledDetections.cat([loud], [1]).ap() == 0.5


def test_equal_scores_pass_together():
    rows = [image([0.9, 0.9, 0.9], [1, 0, 0], [0, 1, 1], [0, 0, 1])]
    facts = PooledDetections.cat(rows, [1]).facts()
    assert (facts["absent_per_image_r0.5"], facts["foreign_per_image_r0.5"]) == (2, 1)


def test_none_at_equal_targets_by_hand():
    best = np.array([0.9, 0.8, 0.7, 0.6, 0.1, 0.65, 0.5, 0.05])
    target = np.array([1, 1, 1, 1, 1, 0, 0, 0], bool)
    found = none_accuracy(best, target)
    # Four of five targets are kept from 0.6 on; all five from 0.1 on.
    assert found["n_acc_t0.8"] == pytest.approx(2 / 3)
    assert found["n_acc_t0.9"] == pytest.approx(1 / 3)
    assert found["auroc"] == pytest.approx(mannwhitneyu(best[target], best[~target]).statistic / 15)
    with pytest.raises(UserError, match="given 5 and 0"):
        none_accuracy(best[target], target[target])


@settings(deadline=None)
@given(st.integers(0, 300), st.floats(0.1, 10), st.floats(-5, 5))
def test_none_accuracy_sees_the_order_alone_and_ties_count_against_us(seed, scale, shift):
    rng = np.random.default_rng(seed)
    best, target = rng.integers(0, 8, 40) / 8, rng.random(40) < 0.5
    if target.any() and not target.all():
        found = none_accuracy(best, target)
        assert none_accuracy(scale * best + shift, target) == pytest.approx(found)
        assert found["auroc"] == pytest.approx(
            mannwhitneyu(best[target], best[~target]).statistic / (target.sum() * (~target).sum())
        )
        assert none_accuracy(np.zeros(40), target)["n_acc_t0.8"] == 0


def test_gains_are_resampled_over_images():
    rng = np.random.default_rng(0)
    target, images = np.arange(60) % 2 == 0, [n // 4 for n in range(60)]
    worse = rng.normal(size=60) + 0.5 * target
    base, count = none_metric(worse, target, images)
    better, _ = none_metric(worse + 3 * target, target, images)
    assert count == 15
    row = paired_bootstrap(base, better, count, resamples=50, progress=False)["auroc"]
    assert row["low"] > 0.1
    assert np.isnan(base(np.eye(1, 15)[0] * 0)["auroc"])

"""Precision by query, binding, bounds of recall, and gains of masks."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from smartclip_det.core.errors import UserError
from smartclip_det.metrics.query_precision import (
    average_precision,
    best_recalls,
    gains,
    mean_known,
    misbound,
    query_precisions,
    reader_recalls,
    separation,
)


def test_average_precision_by_hand():
    assert average_precision(np.array([1, 0, 1, 0], bool), np.array([0.9, 0.8, 0.7, 0.6])) == pytest.approx(5 / 6)
    # Equal scores are one threshold: both orders give the same.
    assert average_precision(np.array([1, 0], bool), np.array([0.5, 0.5])) == 0.5
    assert average_precision(np.array([0, 1], bool), np.array([0.5, 0.5])) == 0.5
    assert average_precision(np.zeros(3, bool), np.arange(3.0)) == -1
    found = query_precisions(np.array([[1, 0], [0, 0]], bool), np.array([[0.1, 0.2], [0.3, 0.4]]))
    assert found[0] == 0.5
    assert np.isnan(found[1])
    assert mean_known(found) == 0.5
    assert mean_known(found[1:]) == -1


def test_a_perfect_order_is_one_and_a_constant_score_is_the_share():
    rng = np.random.default_rng(0)
    present = rng.random(200) < 0.2
    assert average_precision(present, present.astype(float)) == 1.0
    assert average_precision(present, np.zeros(200)) == pytest.approx(present.mean())


def test_images_left_out_do_not_count():
    rng = np.random.default_rng(1)
    present, scores = rng.random((50, 4)) < 0.3, rng.random((50, 4)).round(1)
    out = (rng.random((50, 4)) < 0.3) & ~present
    found = query_precisions(present, scores, out)
    kept = [~o for o in out.T]
    expected = [average_precision(p[k], s[k]) for p, s, k in zip(present.T, scores.T, kept, strict=True)]
    assert found == pytest.approx(expected)
    assert (found >= query_precisions(present, scores)).all()


def test_binding_by_hand():
    classes = ["red drop", "blue drop", "red heart", "blue heart"]
    present = np.array(
        [
            [0, 1, 1, 0],  # Blue drop and red heart: both words of "red drop", but on other objects.
            [1, 0, 0, 1],
            [1, 1, 0, 0],
            [0, 0, 1, 0],
            [1, 0, 1, 0],
        ],
        dtype=bool,
    )
    expected = [[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert misbound(present, classes).astype(int).tolist() == expected
    with pytest.raises(UserError, match="two-word classes.*'star'"):
        misbound(present[:, :2], ["red drop", "star"])


def test_separation_is_the_area_under_roc_weighed_by_comparisons():
    rng = np.random.default_rng(2)
    present = rng.random((40, 3)) < 0.3
    others = (rng.random((40, 3)) < 0.4) & ~present
    others[:, 2] = False
    scores = rng.random((40, 3)).round(1)
    areas, weights = [], []
    for c in range(2):
        true, other = scores[present[:, c], c], scores[others[:, c], c]
        weights.append(len(true) * len(other))
        areas.append(mannwhitneyu(true, other).statistic / weights[-1])
    assert separation(present, others, scores) == pytest.approx(np.average(areas, weights=weights))
    assert separation(present, np.zeros_like(present), scores) == -1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=8), st.integers(1, 3))
def test_no_order_of_images_finds_more_than_the_best(pairs, cut):
    texts, owner = [t for t, _ in pairs], np.array([i for _, i in pairs])
    best = sum(
        max(sum(o in order[:cut] for t, o in pairs if t == text) for order in permutations(range(4)))
        for text in set(texts)
    )
    assert best_recalls(texts, owner, (cut,))[cut] == pytest.approx(best / len(pairs))


def test_who_knows_what_is_true_finds_one_of_as_many():
    assert reader_recalls(np.array([1, 2, 10]), (1, 5)) == pytest.approx({1: (1 + 0.5 + 0.1) / 3, 5: 2.5 / 3})


def test_gains_are_of_queries_in_pairs():
    rng = np.random.default_rng(3)
    base = rng.random(80)
    found = {"hard": base + 0.1, "off": base, "random": rng.permutation(base)}
    found["hard"][:3] = found["off"][:3] = found["random"][:3] = np.nan
    told = gains(found, ("off", "random", "shuffled"))
    assert set(told) == {"off", "random"}
    # The same gain on every query: the interval is a point, however different the queries are.
    assert [told["off"][k] for k in ("difference", "low", "high")] == pytest.approx([0.1] * 3)
    assert told["random"]["high"] - told["random"]["low"] > 0.05
    assert gains({"hard": np.array([np.nan]), "off": np.array([np.nan])}, ("off",)) == {}

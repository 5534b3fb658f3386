"""Presence: off has no effect, texts are independent, more presence never lowers a score; calibration."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smartclip_det.core.errors import UserError
from smartclip_det.core.presence import fit_sigmoid, log_presence, presence_cosine, rising, with_presence
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank
from smartclip_det.core.words import PRESENCE_SOURCES

MODES = st.sampled_from(["hard", "off", "random"])
NORMS = st.sampled_from(["full", "masked"])


def made(seed, classes=6, cells=5, dim=12):
    """A bank, and the vectors of an image."""
    g = torch.Generator().manual_seed(seed)
    names = tuple(f"name {n}" for n in range(classes))
    masks = (torch.rand(classes, dim, generator=g) < 0.5).float()
    bank = TextBank(names, torch.randn(classes, dim, generator=g), masks)
    return bank, torch.randn(cells, dim, generator=g), torch.rand(7, classes, generator=g)


@settings(deadline=None)
@given(st.integers(0, 500), MODES, NORMS)
def test_an_exponent_of_zero_gives_exactly_the_scores_of_before(seed, mode, norm):
    bank, picture, scores = made(seed)
    policy = ScoringPolicy(mask_mode=mode, text_norm=norm, presence_scale=7.0, presence_bias=-1.0)
    assert with_presence(scores, picture, bank, policy) is scores
    assert with_presence(scores, None, bank, policy) is scores


@settings(deadline=None)
@given(st.integers(0, 500), MODES, NORMS, st.floats(0.1, 3), st.integers(1, 5))
def test_a_name_is_scored_alike_whatever_the_others_are(seed, mode, norm, power, kept):
    bank, picture, scores = made(seed)
    policy = ScoringPolicy(mask_mode=mode, text_norm=norm, presence=power, presence_scale=9.0, presence_bias=-2.0)
    columns = torch.randperm(len(bank), generator=torch.Generator().manual_seed(seed))[:kept]
    part = bank.select([bank.names[i] for i in columns])
    found = with_presence(scores[:, columns], picture, part, policy)
    assert torch.allclose(found, with_presence(scores, picture, bank, policy)[:, columns], atol=1e-6)


@settings(deadline=None)
@given(st.integers(0, 500), st.floats(0.1, 3), st.floats(0.1, 100), st.floats(-20, 20))
def test_more_presence_is_never_a_lower_score(seed, power, scale, bias):
    bank, picture, _ = made(seed, cells=1)
    policy = ScoringPolicy(presence=power, presence_scale=scale, presence_bias=bias)
    cosine = presence_cosine(picture, bank, policy)
    found = with_presence(torch.full((1, len(bank)), 0.5), picture, bank, policy)[0]
    order = cosine.argsort()
    assert (found[order].diff() >= 0).all()
    assert ((found >= 0) & (found <= 0.5)).all()
    expected = 0.5 * (1 / (1 + math.exp(-(scale * float(cosine[0]) + bias)))) ** power
    assert float(found[0]) == pytest.approx(expected, rel=1e-3, abs=1e-12)


@settings(deadline=None)
@given(st.integers(0, 500), MODES)
def test_the_largest_weighted_cell_counts_and_lengths_are_relative(seed, mode):
    bank, picture, _ = made(seed)
    policy = ScoringPolicy(mask_mode=mode)
    cosines, lengths = bank.cosine(picture, policy), picture.norm(dim=1)
    expected = torch.stack([c * n for c, n in zip(cosines, lengths / lengths.max(), strict=True)]).amax(dim=0)
    found = presence_cosine(picture, bank, policy)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(presence_cosine(100 * picture, bank, policy), found, atol=1e-5)
    # A zero cell has cosine 0.
    louder = torch.cat([picture, torch.zeros(1, picture.shape[1])])
    assert torch.allclose(presence_cosine(louder, bank, policy), found.clamp(min=0), atol=1e-6)
    one = presence_cosine(picture[:1], bank, policy)
    assert torch.allclose(one, bank.cosine(picture[:1], policy)[0], atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.floats(2, 60), st.floats(-6, 3), st.integers(0, 100))
def test_calibration_finds_the_sigmoid_that_made_the_labels(scale, bias, seed):
    g = torch.Generator().manual_seed(seed)
    cosines = torch.rand(40000, generator=g) * 0.6 - 0.1
    chances = (scale * cosines.double() + bias).sigmoid()
    present = torch.rand(40000, generator=g, dtype=torch.float64) < chances
    if 400 < int(present.sum()) < 39600:
        found = fit_sigmoid(cosines, present)
        assert found[0] == pytest.approx(scale, rel=0.2)
        assert (found[0] * cosines.double() + found[1]).sigmoid().sub(chances).abs().max() < 0.04
        kept = fit_sigmoid(cosines, present, scale)
        assert kept[0] == scale
        assert kept[1] == pytest.approx(bias, abs=0.15)


def test_calibration_of_what_is_told_apart_wholly_is_finite():
    scale, bias = fit_sigmoid(torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.tensor([False, False, True, True]))
    chances = [1 / (1 + math.exp(-(scale * c + bias))) for c in (0.2, 0.8)]
    assert chances[0] < 0.3 < 0.7 < chances[1]
    # Platt's targets are 3/4 and 1/4 for two samples each.
    assert sum(chances) == pytest.approx(1, abs=0.05)


def test_a_scale_that_a_policy_refuses_is_bounded():
    """Labels that decrease with the cosine, as random towers may give."""
    falling = fit_sigmoid(torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.tensor([True, False, True, False]))
    assert falling[0] < 0
    scale, bias = rising(falling)
    assert ScoringPolicy(presence_scale=scale, presence_bias=bias).presence_scale > 0
    assert rising((3.0, bias)) == (3.0, bias)


def test_bad_input():
    bank, picture, scores = made(0)
    policy = ScoringPolicy(presence=1.0)
    with pytest.raises(UserError, match="needs image-level vectors"):
        with_presence(scores, None, bank, policy)
    with pytest.raises(UserError, match="at least one vector"):
        log_presence(picture[:0], bank, policy)
    for wrong in (-1, 11, float("nan"), "much", True):
        with pytest.raises(UserError, match="presence"):
            ScoringPolicy(presence=wrong)
    with pytest.raises(UserError, match="presence_scale must be a positive number"):
        ScoringPolicy(presence_scale=0)
    with pytest.raises(UserError, match="Nearest: pooled"):
        ScoringPolicy(presence_source="poled")
    with pytest.raises(UserError, match="Trained heads have their own scores"):
        ScoringPolicy(presence=1).without_presence("Trained heads")
    with pytest.raises(UserError, match="given 0 positive, 3 negative"):
        fit_sigmoid(torch.rand(3), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(UserError, match="positive number"):
        fit_sigmoid(torch.rand(2), torch.tensor([True, False]), -1.0)
    assert ScoringPolicy().presence == 0
    assert ScoringPolicy().presence_source == PRESENCE_SOURCES[0]

"""Mask statistics by hand, and the page."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smartclip_det.cli.study.masks import kinds_of
from smartclip_det.core.errors import UserError
from smartclip_det.probing.mask_statistics import (
    algebra,
    containment,
    distinctive,
    expected_jaccard,
    jaccard,
    kind_overlap,
    occupancy,
    similarity_order,
)
from tests.tools.test_runs import run

MASKS = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, 1.0]])


def test_occupancy_by_hand():
    found = occupancy(MASKS).facts()
    assert (found["dead"], found["always_on"]) == (1, 1)
    assert found["density_mean"] == pytest.approx(7 / 12)
    assert (found["density_min"], found["density_max"]) == (0.5, 0.75)
    third = -(2 / 3) * torch.log2(torch.tensor(2 / 3)).item() - (1 / 3) * torch.log2(torch.tensor(1 / 3)).item()
    assert found["entropy"] == pytest.approx(2 * third / 4, abs=1e-6)
    for bad in (torch.zeros(0, 4), torch.full((2, 2), 0.5)):
        with pytest.raises(UserError):
            occupancy(bad)


def test_overlap_within_a_kind_and_between_kinds():
    masks = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1.0]])
    found = kind_overlap(masks, ["colour", "colour", "shape", "shape", "size"])
    assert found["same_colour"] == pytest.approx(1 / 3)
    assert found["same_shape"] == 1.0
    assert found["same"] == pytest.approx(2 / 3)
    assert found["different_colour_shape"] == pytest.approx((0 + 0 + 1 / 3 + 1 / 3) / 4)
    assert found["different_colour_size"] == found["different_shape_size"] == 0.5
    assert found["different"] == pytest.approx((2 / 3 + 4 * 0.5) / 8)
    assert "same_size" not in found
    # The order of the words only changes the names of pairs, which follow the first appearance.
    assert kind_overlap(masks.flip(0), ["size", "shape", "shape", "colour", "colour"])["same"] == found["same"]
    with pytest.raises(UserError, match="5 masks but 2 kinds"):
        kind_overlap(masks, ["a", "b"])


def test_kinds_of_the_command_line():
    assert kinds_of(["colour=red, light blue", "shape=star"]) == {"colour": ["red", "light blue"], "shape": ["star"]}
    for bad in (["red"], ["=a"], ["c=a,,b"], ["c=a", "c=b"], ["c=a", "d=a"]):
        with pytest.raises(UserError, match="--kinds"):
            kinds_of(bad)


def test_containment_and_jaccard_by_hand():
    assert containment(MASKS[:2], MASKS[[2, 0]]).tolist() == [1.0, 0.5]
    assert jaccard(MASKS[:2], MASKS[[2, 0]]).tolist() == pytest.approx([2 / 3, 1 / 3])
    assert containment(torch.zeros(1, 4), MASKS[:1]).tolist() == [1.0]


def test_masks_that_are_sets_of_concepts_obey_the_algebra():
    a, b, c = torch.eye(3).repeat_interleave(2, dim=1)
    rows = [x.unsqueeze(0) for x in (a, b, torch.maximum(a, b), torch.maximum(a, c))]
    found = algebra(*rows)
    assert found["union"] == found["intersection"] == 1.0
    assert found["intersection_chance"] == pytest.approx((1 / 9) / (2 / 3 - 1 / 9))


@given(st.integers(0, 1000), st.floats(0.1, 0.9), st.floats(0.1, 0.9))
def test_independent_masks_are_at_chance(seed, p, q):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(40, 500, generator=g) < p).float(), (torch.rand(40, 500, generator=g) < q).float()
    assert jaccard(a, b).mean().item() == pytest.approx(expected_jaccard(a, b), abs=0.03)


def test_what_splits_the_texts_and_their_order():
    (first,) = distinctive(MASKS, ["x", "y", "z"], 1)
    assert first[0] in (1, 3)
    assert first[1] == pytest.approx(2 / 3)
    order = similarity_order(torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1.0]]))
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 2}), frozenset({1, 3})}
    with pytest.raises(UserError, match="3 masks but 2 texts"):
        distinctive(MASKS, ["x", "y"])


@pytest.mark.slow
def test_the_page(shared, tmp_path):
    done = run(
        "tools/analysis/masks.py",
        "--arch",
        "SmartCLIP-tiny",
        "--texts",
        "cat",
        "dog",
        "car",
        "tree",
        "--pairs",
        "5",
        "--captions",
        shared / "long_captions/../coco_mini_train/captions_train2017.json",
        "--limit",
        "20",
        "--out",
        tmp_path,
    )
    found = json.loads((tmp_path / "masks.json").read_text())["metrics"]
    assert found["words"]["texts"] == 4
    assert found["captions"]["texts"] == 20
    assert set(found["algebra"]) == {"union", "union_chance", "intersection", "intersection_chance"}
    assert "<img" in (tmp_path / "masks.html").read_text()
    assert "written" in done.stdout
    done = run("tools/analysis/masks.py", "--arch", "CLIP-toy", "--texts", "cat", check=False)
    assert done.returncode == 2
    assert "has no mask network" in done.stderr

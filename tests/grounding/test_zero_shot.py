"""Parsing, spatial reasoning and the zero-shot scorer, by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank
from smartclip_det.evaluation.grounding import chance_accuracy, proposals_by_image, single_targets
from smartclip_det.evaluation.referring_files import Expression
from smartclip_det.models.grounding.parsing import ParsedExpression, parse_expression
from smartclip_det.models.grounding.zero_shot import ZeroShotGrounder, extreme, related, relation_matrix
from smartclip_det.models.regions import RegionEncoder
from tests.models.test_regions import COLOURS, ColourTowers, scene


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("the red heart", ParsedExpression("the red heart")),
        ("The leftmost  star", ParsedExpression("the star", ("left",))),
        ("the star to the left of the red heart", ParsedExpression("the star", (), "left", "the red heart")),
        ("biggest dog above the cat", ParsedExpression("biggest dog".replace("biggest ", ""), ("bigger",), "above", "the cat")),
        ("person under umbrella", ParsedExpression("person", (), "below", "umbrella")),
        ("the left", ParsedExpression("the left")),
        ("above", ParsedExpression("above")),
        ("leftover soup", ParsedExpression("leftover soup")),
    ],
)  # fmt: skip
def test_parsing(text, parsed):
    assert parse_expression(text) == parsed


@given(st.text(st.characters(codec="ascii"), max_size=40))
def test_parsing_never_fails_and_loses_no_head(text):
    parsed = parse_expression(text)
    assert bool(parsed.head) == bool(text.split())


def test_relations_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 40, 20], [22, 2, 30, 10]])
    assert relation_matrix(boxes, "left").tolist() == [[0, 1, 1], [0, 0, 0], [0, 1, 0]]
    assert relation_matrix(boxes, "bigger").tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 0]]
    assert torch.allclose(relation_matrix(boxes, "within"), torch.tensor([[0, 0, 0], [0, 0, 64 / 400], [0, 1, 0]]))
    below, above = relation_matrix(boxes, "below"), relation_matrix(boxes, "above")
    assert torch.equal(below, above.t())
    with pytest.raises(UserError, match="relation"):
        relation_matrix(boxes, "lft")


def test_soft_products_by_hand():
    target, anchor = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.0, 0.0, 1.0])
    relation = torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 0, 0]])
    assert related(target, anchor, relation).tolist() == [0, 1, 0]
    assert torch.equal(related(target, torch.tensor([1.0, 0, 0]), relation), target)
    order = torch.tensor([[0.0, 1, 1], [0, 0, 1], [0, 0, 0]])
    expected = torch.tensor([0.5 * 0.5, 0.3 * 0.2, 0.0])
    assert torch.allclose(extreme(target, order), expected / expected.sum())


BOXES = [[0.0, 0, 32, 32], [64, 32, 128, 96], [0, 60, 30, 90]]


def bank_of(*texts):
    rows = [COLOURS[t.split()[-1]] for t in texts]
    return TextBank(texts, torch.tensor(rows) / 255, torch.ones(len(texts), 3))


@pytest.mark.parametrize("views", [("dense",), ("crop",), ("crop", "dense")])
def test_an_oracle_grounds_colours(views):
    grounder = ZeroShotGrounder(RegionEncoder(ColourTowers(), crop_context=1.0), views=views)
    texts = ["the red", "the blue"]
    scores = grounder.score(grounder.region_vectors(scene(), BOXES), BOXES, texts, bank_of(*texts))
    assert scores.shape == (2, 3)
    assert scores.argmax(dim=1).tolist() == [0, 1]
    assert torch.allclose(scores.sum(dim=1), torch.ones(2))


def test_spatial_words_decide_between_equals():
    image = scene()
    image.paste(COLOURS["red"], (0, 64, 32, 96))
    boxes = [[0.0, 0, 32, 32], [64, 32, 128, 96], [0, 64, 32, 96]]
    grounder = ZeroShotGrounder(RegionEncoder(ColourTowers()), spatial=True)
    expressions = ["topmost red", "bottommost red", "red below the red", "red above the blue"]
    bank = bank_of("red", "the red", "the blue")
    scores = grounder.score(grounder.region_vectors(image, boxes), boxes, expressions, bank)
    assert scores.argmax(dim=1).tolist() == [0, 2, 2, 0]
    with pytest.raises(UserError, match="lacks 1 of the expressions' texts"):
        grounder.score(grounder.region_vectors(image, boxes), boxes, ["the green"], bank)
    with pytest.raises(UserError, match="at least one view"):
        ZeroShotGrounder(RegionEncoder(ColourTowers()), views=())


def test_text_shuffled_gives_every_class_another_text():
    bank = bank_of("red", "green", "blue")
    control = bank.text_shuffled()
    assert control.names == bank.names
    assert not any(torch.equal(a, b) for a, b in zip(bank.embeds, control.embeds, strict=True))
    assert {tuple(e.tolist()) for e in bank.embeds} == {tuple(e.tolist()) for e in control.embeds}
    assert control.provenance["control"] == "text_shuffled"
    policy = ScoringPolicy()
    v = torch.randn(4, 3)
    moved = torch.stack([(bank.embeds == e).all(1).nonzero()[0, 0] for e in control.embeds])
    assert torch.allclose(control.cosine(v, policy), bank.cosine(v, policy)[:, moved])


def expression(key, image, *boxes):
    return Expression(key, image, "a.png", "the red", tuple(tuple(b) for b in boxes))


def test_candidates_and_chance(tmp_path):
    import json

    many = [expression(1, 7, BOXES[0]), expression(2, 7, BOXES[1]), expression(3, 8), expression(4, 8, *BOXES[:2])]
    kept, left = single_targets(many)
    assert [e.id for e in kept] == [1, 2]
    assert left == 2
    assert proposals_by_image("ground-truth", kept) == {7: BOXES[:2]}
    assert chance_accuracy(kept, {7: BOXES}) == pytest.approx(1 / 3)
    assert chance_accuracy(kept, {}) == 0.0
    ann = {"images": [{"id": 7, "file_name": "a.png", "width": 128, "height": 96}],
           "annotations": [{"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 32, 32], "area": 1}],
           "categories": [{"id": 1, "name": "x"}]}  # fmt: skip
    (tmp_path / "ann.json").write_text(json.dumps(ann))
    saved = [{"image_id": 7, "category_id": 1, "bbox": [n, 0, 5, 5], "score": n / 10} for n in range(5)]
    (tmp_path / "pred.json").write_text(json.dumps(saved))
    instances = str(tmp_path / "ann.json")
    assert proposals_by_image("ground-truth", kept, instances) == {7: [[0, 0, 32, 32]]}
    assert proposals_by_image(str(tmp_path / "pred.json"), kept, instances, 2) == {7: [[4, 0, 9, 5], [3, 0, 8, 5]]}
    with pytest.raises(UserError, match="need --instances"):
        proposals_by_image(str(tmp_path / "pred.json"), kept)
    with pytest.raises(UserError, match="No proposals at"):
        proposals_by_image("absent.json", kept, instances)
    with pytest.raises(UserError, match="exactly one target"):
        single_targets(many[2:])


def test_evidence_compares_over_images_and_a_bank_is_subtracted():
    texts = ["the red", "the blue"]
    bank = bank_of(*texts)
    grounder = ZeroShotGrounder(RegionEncoder(ColourTowers(), crop_context=1.0), views=("crop", "dense"))
    vectors = grounder.region_vectors(scene(), BOXES)
    found = grounder.evidence(vectors, BOXES, texts, bank)
    expected = sum(bank.cosine(v, grounder.policy) for v in vectors.values()).t() / 2
    assert torch.allclose(found, expected)
    less = ZeroShotGrounder(grounder.encoder, views=("crop", "dense"), subtracted=bank)
    assert torch.allclose(less.evidence(vectors, BOXES, texts, bank), expected - expected.mean(dim=0), atol=1e-6)
    # The best box of a text alone may change; the softmax over boxes follows the subtracted logits.
    logits = (expected - expected.mean(dim=0)) * 2 * grounder.policy.temperature
    assert torch.allclose(less.score(vectors, BOXES, texts, bank), logits.softmax(dim=1), atol=1e-5)


def test_reasoning_only_takes_from_the_evidence():
    spatial = ZeroShotGrounder(RegionEncoder(ColourTowers(), crop_context=1.0), views=("crop",), spatial=True)
    plain = ZeroShotGrounder(spatial.encoder, views=("crop",))
    vectors = spatial.region_vectors(scene(), BOXES)
    reasoned = spatial.evidence(vectors, BOXES, ["leftmost red"], bank_of("red"))
    alone = plain.evidence(vectors, BOXES, ["red"], bank_of("red"))
    assert (reasoned <= alone + 1e-6).all()
    assert (reasoned < alone - 1e-3).any()


def test_the_circle_is_red_and_inside_its_box():
    import numpy as np
    from PIL import Image

    from smartclip_det.models.regions import circle_inside

    image = Image.new("RGB", (120, 80), (10, 20, 30))
    drawn = np.array(circle_inside(image, [20, 10, 80, 70]))
    changed = (drawn != np.array(image)).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (10, 69, 20, 79)
    assert (drawn[changed] == (255, 0, 0)).all()
    assert not changed[35:45, 45:55].any()


def test_a_threshold_is_found_between_none_and_many():
    from smartclip_det.evaluation.generalized_referring import calibrate_threshold
    from smartclip_det.evaluation.referring_files import GroundedBoxes

    a, b = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0)
    truth = [
        Expression(1, 1, "x.jpg", "dogs", (a, b)),
        Expression(2, 1, "x.jpg", "dog", (a,)),
        Expression(3, 1, "x.jpg", "cat", ()),
    ]
    predictions = {
        1: GroundedBoxes((a, b), (0.9, 0.6)),
        2: GroundedBoxes((a, b), (0.8, 0.4)),
        3: GroundedBoxes((b, a), (0.5, 0.1)),
    }
    best, metrics = calibrate_threshold(truth, predictions)
    assert 0.5 < best < 0.6
    assert metrics["f1"] == 1.0
    with pytest.raises(UserError, match="no predicted box"):
        calibrate_threshold(truth, {})

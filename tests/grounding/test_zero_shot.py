"""Parsing, spatial reasoning and the zero-shot scorer, by hand."""

from __future__ import annotations

import pytest
import torch

from smartclip_det.core.errors import UserError
from smartclip_det.core.presence import log_presence
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank
from smartclip_det.formats.candidates import Candidates, candidates_of
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.metrics.referring import best_possible, chance_accuracy, single_targets
from smartclip_det.models.grounding.zero_shot import (
    ZeroShotGrounder,
    between_tensor,
    extreme,
    related,
    relation_matrix,
    with_detector,
)
from smartclip_det.models.regions import RegionEncoder
from tests.models.test_regions import COLOURS, ColourTowers, scene


def test_relations_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 40, 20], [22, 2, 30, 10]])
    assert relation_matrix(boxes, "left").tolist() == [[0, 1, 1], [0, 0, 0], [0, 1, 0]]
    assert relation_matrix(boxes, "bigger").tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 0]]
    assert torch.allclose(relation_matrix(boxes, "within"), torch.tensor([[0, 0, 0], [0, 0, 64 / 400], [0, 1, 0]]))
    below, above = relation_matrix(boxes, "below"), relation_matrix(boxes, "above")
    assert torch.equal(below, above.t())
    with pytest.raises(UserError, match="relation"):
        relation_matrix(boxes, "lft")


def test_between_by_hand():
    boxes = torch.tensor([[10.0, 10, 20, 20], [0, 0, 4, 4], [40, 40, 44, 44], [100, 0, 104, 4]])
    found = between_tensor(boxes)
    assert found[0, 1, 2] == found[0, 2, 1] == 1
    assert found[0, 1, 3] == found[1, 0, 2] == found[0, 0, 2] == found[0, 1, 1] == 0
    assert found.sum() == 2


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
    grounder = ZeroShotGrounder(RegionEncoder(ColourTowers()), reading="chunks")
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
    found = candidates_of("ground-truth", kept)
    assert found[1] is found[2]
    assert found[1].boxes == BOXES[:2]
    assert chance_accuracy(kept, {1: BOXES, 2: BOXES[:1]}) == pytest.approx(1 / 6)
    assert best_possible(kept, {1: BOXES, 2: BOXES[:1]}) == 0.5
    assert chance_accuracy(kept, {}) == best_possible(kept, {}) == 0.0
    mask = {"size": [96, 128], "counts": "abc"}
    ann = {
        "images": [{"id": 7, "file_name": "a.png", "width": 128, "height": 96}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 32, 32], "area": 1, "segmentation": mask}
        ],
        "categories": [{"id": 1, "name": "x"}],
    }
    (tmp_path / "ann.json").write_text(json.dumps(ann))
    saved = [{"image_id": 7, "category_id": 1, "bbox": [n, 0, 5, 5], "score": n / 10} for n in range(5)]
    (tmp_path / "pred.json").write_text(json.dumps(saved))
    instances = str(tmp_path / "ann.json")
    assert candidates_of("ground-truth", kept, instances)[2] == Candidates([[0, 0, 32, 32]], None, [mask])
    assert candidates_of(str(tmp_path / "pred.json"), kept, instances, 2)[1] == Candidates(
        [[4, 0, 9, 5], [3, 0, 8, 5]], [0.4, 0.3], None
    )
    (tmp_path / "pred.jsonl").write_text(json.dumps({"id": 2, "boxes": BOXES, "scores": [0.1, 0.9, 0.5]}))
    lines = candidates_of(str(tmp_path / "pred.jsonl"), kept, limit=2)
    assert lines == {1: Candidates([], []), 2: Candidates([BOXES[1], BOXES[2]], [0.9, 0.5])}
    with pytest.raises(UserError, match="need --instances"):
        candidates_of(str(tmp_path / "pred.json"), kept)
    with pytest.raises(UserError, match="No proposals at"):
        candidates_of("absent.json", kept, instances)
    with pytest.raises(UserError, match="exactly one target"):
        single_targets(many[2:])


def test_evidence_compares_over_images_and_a_bank_is_subtracted():
    texts = ["the red", "the blue"]
    bank = bank_of(*texts)
    grounder = ZeroShotGrounder(RegionEncoder(ColourTowers(), crop_context=1.0), views=("crop", "dense"))
    vectors = grounder.region_vectors(scene(), BOXES)
    found = grounder.evidence(vectors, BOXES, texts, bank)
    expected = sum(bank.cosine(v, grounder.policy) for v in vectors[0].values()).t() / 2
    assert torch.allclose(found, expected)
    less = ZeroShotGrounder(grounder.encoders, views=("crop", "dense"), subtracted=bank)
    assert torch.allclose(less.evidence(vectors, BOXES, texts, bank), expected - expected.mean(dim=0), atol=1e-6)
    # The best box of a single text may change; the softmax over boxes uses the subtracted logits.
    logits = (expected - expected.mean(dim=0)) * 2 * grounder.policy.temperature
    assert torch.allclose(less.score(vectors, BOXES, texts, bank), logits.softmax(dim=1), atol=1e-5)


@pytest.mark.parametrize("source", ["pooled", "cells"])
def test_presence_takes_from_the_evidence_of_a_text_and_keeps_the_order_of_boxes(source):
    texts = ["the red", "the green"]
    bank = bank_of(*texts)
    encoder = RegionEncoder(ColourTowers(), crop_context=1.0)
    plain = ZeroShotGrounder(encoder, views=("crop",))
    policy = plain.policy.with_(presence=0.5, presence_source=source, presence_scale=20.0, presence_bias=-10.0)
    present = ZeroShotGrounder(encoder, views=("crop",), policy=policy)
    vectors, pictures = plain.region_vectors(scene(), BOXES), present.picture_vectors(scene())
    assert plain.picture_vectors(scene()) is None
    before = plain.evidence(vectors, BOXES, texts, bank)
    after = present.evidence(vectors, BOXES, texts, bank, pictures=pictures)
    expected = log_presence(pictures[0], bank, policy) / policy.temperature
    assert torch.allclose(after - before, expected[:, None].expand(2, 3), atol=1e-6)
    assert expected[0] > expected[1]
    assert after.argsort(dim=1).tolist() == before.argsort(dim=1).tolist()
    with pytest.raises(UserError, match="needs image-level vectors from each encoder"):
        present.evidence(vectors, BOXES, texts, bank)
    # A whole is at most as present as its least present part.
    chunks = ZeroShotGrounder(encoder, views=("crop",), policy=policy, reading="chunks")
    tree = bank_of("the red", "the green")
    told = chunks.evidence(vectors, BOXES, ["the red left of the green"], tree, pictures=pictures)
    bare = ZeroShotGrounder(encoder, views=("crop",), reading="chunks")
    less = told - bare.evidence(vectors, BOXES, ["the red left of the green"], tree)
    assert torch.allclose(less, expected.min().expand(1, 3), atol=1e-5)


def test_a_margin_is_over_what_the_background_says():
    import dataclasses

    texts = ["the red", "the blue"]
    grounder = ZeroShotGrounder(RegionEncoder(ColourTowers(), crop_context=1.0), views=("crop", "dense"))
    vectors = grounder.region_vectors(scene(), BOXES)
    bare = bank_of(*texts)
    bank = dataclasses.replace(bare, background=bank_of("a green"))
    plain = grounder.evidence(vectors, BOXES, texts, bank)
    green = grounder.cosines(vectors, bank_of("a green"))[:, 0]
    assert torch.allclose(grounder.evidence(vectors, BOXES, texts, bank, margin=True), plain - green, atol=1e-6)
    with pytest.raises(UserError, match="margin=True needs banks with a background"):
        grounder.evidence(vectors, BOXES, texts, bare, margin=True)


def test_reasoning_only_takes_from_the_evidence():
    spatial = ZeroShotGrounder(RegionEncoder(ColourTowers(), crop_context=1.0), views=("crop",), reading="chunks")
    plain = ZeroShotGrounder(spatial.encoders, views=("crop",))
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
    from smartclip_det.formats.expressions.record import GroundedBoxes
    from smartclip_det.metrics.generalized_referring import calibrate_threshold

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


def reclip_by_hand(regions, texts, boxes, sentence):
    """ReCLIP's score (arXiv 2204.05991) reimplemented with loops: p0 times the relation of head and anchor."""
    import math

    def chances(text):
        rows = [
            100
            * sum(a * b for a, b in zip(r, texts[text], strict=True))
            / math.sqrt(sum(a * a for a in r))
            / math.sqrt(sum(b * b for b in texts[text]))
            for r in regions
        ]
        total = sum(math.exp(v - max(rows)) for v in rows)
        return [math.exp(v - max(rows)) / total for v in rows]

    head, anchor = sentence.split(" left of ")
    p, q = chances(head), chances(anchor)
    centres = [(b[0] + b[2]) / 2 for b in boxes]
    held = [p[i] * sum(q[j] for j in range(len(boxes)) if centres[i] < centres[j]) for i in range(len(boxes))]
    held = [v / sum(held) for v in held] if sum(held) else p
    both = [a * b for a, b in zip(chances(sentence), held, strict=True)]
    return [v / sum(both) for v in both]


def test_plain_features_and_given_boxes_score_as_an_independent_reclip():
    g = torch.Generator().manual_seed(3)
    boxes = [[0.0, 0, 10, 10], [20, 0, 40, 20], [22, 2, 30, 10], [50, 5, 60, 30]]
    sentence = "a dog left of a cat"
    texts = {t: torch.randn(8, generator=g) for t in (sentence, "a dog", "a cat")}
    regions = torch.randn(4, 8, generator=g)
    bank = TextBank(
        tuple(texts), torch.nn.functional.normalize(torch.stack(list(texts.values())), dim=1), torch.ones(3, 8)
    )
    policy = ScoringPolicy(mask_mode="off", temperature=100.0)
    grounder = ZeroShotGrounder(RegionEncoder(ColourTowers()), policy=policy, reading="both")
    found = grounder.score([{"dense": regions}], boxes, [sentence], bank)[0]
    expected = reclip_by_hand(
        regions.double().tolist(), {t: v.double().tolist() for t, v in texts.items()}, boxes, sentence
    )
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_an_ensemble_sums_logits_and_the_detector_has_its_share():
    texts = ["the red", "the blue"]
    bank = bank_of(*texts)
    one, two = (RegionEncoder(ColourTowers(), crop_context=c) for c in (1.0, 2.0))
    single = [ZeroShotGrounder(e, views=("crop",)) for e in (one, two)]
    both = ZeroShotGrounder([one, two], views=("crop",))
    logits = sum(g.cosines(g.region_vectors(scene(), BOXES), bank) for g in single) * both.policy.temperature
    vectors = both.region_vectors(scene(), BOXES)
    scores = both.score(vectors, BOXES, texts, [bank, bank])
    assert torch.allclose(scores, logits.t().softmax(dim=1), atol=1e-6)
    with pytest.raises(UserError, match="2 encoders need as many banks"):
        both.score(vectors, BOXES, texts, bank)
    detector = torch.tensor([[0.1, 0.8, 0.4], [0.1, 0.8, 0.4]])
    assert torch.allclose(with_detector(scores, detector, 0.0), scores, atol=1e-6)
    expected = scores * detector**0.5
    assert torch.allclose(with_detector(scores, detector, 0.5), expected / expected.sum(dim=1, keepdim=True))


def test_the_mask_view_sees_the_outline_alone():
    import numpy as np

    masks = np.zeros((1, 96, 128), dtype=bool)
    masks[0, :32, :32] = True
    wide = [[0.0, 0, 128, 96]]
    texts = ["the red", "the blue"]
    grounder = ZeroShotGrounder(RegionEncoder(ColourTowers()), views=("mask",))
    cosines = grounder.cosines(grounder.region_vectors(scene(), wide, masks), bank_of(*texts))
    assert cosines[0, 0] > 0.9 > cosines[0, 1]
    with pytest.raises(UserError, match="one mask per box"):
        grounder.region_vectors(scene(), wide)
    with pytest.raises(UserError, match="empty"):
        grounder.texts("  ")


def photographs(shared):
    """Boxes and class names of each photograph, without crowds."""
    import json

    data = json.loads((shared / "coco_mini_train/instances_train2017.json").read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    by_image: dict = {}
    for a in data["annotations"]:
        if not a["iscrowd"]:
            x, y, w, h = a["bbox"]
            by_image.setdefault(a["image_id"], []).append(([x, y, x + w, y + h], names[a["category_id"]]))
    return by_image


@pytest.mark.parametrize("reading", ["chunks", "both"])
def test_an_oracle_tower_grounds_real_objects_and_their_places(shared, reading):
    """Oracle region vectors must select every single object, and every leftmost one of several."""
    by_image = photographs(shared)
    classes = sorted({name for rows in by_image.values() for _, name in rows})
    g = torch.Generator().manual_seed(0)
    embeds = torch.nn.functional.normalize(torch.randn(len(classes), 64, generator=g), dim=1)
    masks = (torch.rand(len(classes), 64, generator=g) > 0.3).float()
    vector = {name: embeds[n] for n, name in enumerate(classes)}
    expressions = [f"{place}{name}" for name in classes for place in ("", "leftmost ", "topmost ")]
    rows = [classes.index(e.removeprefix("leftmost ").removeprefix("topmost ")) for e in expressions]
    bank = TextBank(tuple(expressions), embeds[rows], masks[rows])
    others = TextBank(tuple(expressions), embeds.roll(1, dims=0)[rows], masks.roll(1, dims=0)[rows])
    grounder = ZeroShotGrounder(RegionEncoder(ColourTowers()), reading=reading)
    asked = hits = permuted = alone = 0
    for objects in by_image.values():
        boxes = [b for b, _ in objects]
        regions = [{"dense": torch.stack([vector[n] for _, n in objects])}]
        for name in {n for _, n in objects}:
            mine = [i for i, (_, n) in enumerate(objects) if n == name]
            queries = (
                {name: mine[0]}
                if len(mine) == 1
                else {
                    f"leftmost {name}": min(mine, key=lambda i: boxes[i][0] + boxes[i][2]),
                    f"topmost {name}": min(mine, key=lambda i: boxes[i][1] + boxes[i][3]),
                }
            )
            for text, target in queries.items():
                asked += 1
                hits += int(grounder.score(regions, boxes, [text], bank)[0].argmax()) == target
                # Locations are informative without any text, so the control excludes expressions with them.
                if text == name and len(boxes) > 1:
                    alone += 1
                    permuted += int(grounder.score(regions, boxes, [text], others)[0].argmax()) == target
    assert asked > 200
    assert hits == asked, f"{hits} of {asked}"
    assert permuted / alone < 0.3, f"{permuted} of {alone}"

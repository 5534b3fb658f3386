"""Predictors: no hidden state between images and threads, batches, precision, trees, bad input."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.models.grounding.parsing import parse_expression
from smartclip_det.models.grounding.zero_shot import READINGS, rank_by_tree
from smartclip_det.models.vocabulary import build_bank
from tests.conftest import REPO

SHAPES = [(64, 96, 3), (96, 64, 3), (64, 96, 3), (80, 80, 3)]


@pytest.fixture(scope="module")
def predictor():
    from smartclip_det.apis import Predictor

    torch.manual_seed(0)
    path = REPO / "configs/toy/open-vocab-rcnn_smartclip-toy_toy.py"
    return Predictor.from_config(path, use_cache=False, parser="rules")


@pytest.fixture(scope="module")
def referring():
    from smartclip_det.apis import Predictor

    return Predictor.from_config(REPO / "configs/toy/referring_smartclip-toy_toy.py")


@pytest.fixture(scope="module")
def pictures():
    return [Image.fromarray(np.random.default_rng(n).integers(0, 255, s, dtype=np.uint8)) for n, s in enumerate(SHAPES)]


def same(a, b):
    return len(a) == len(b) and np.allclose(a.boxes, b.boxes, atol=1e-3) and np.allclose(a.scores, b.scores, atol=1e-5)


@pytest.mark.parametrize("kind", ["predictor", "referring"])
def test_eight_threads_get_their_own_answers(kind, pictures, request):
    shared = request.getfixturevalue(kind)

    def ask(k):
        shared.set_image(pictures[k])
        return shared.ground("a red circle", top_k=5)

    alone = [ask(k) for k in range(len(pictures))]
    assert not same(alone[0], alone[1])
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, [n % 4 for n in range(16)]))
    assert all(same(a, alone[n % 4]) for n, a in enumerate(answers))


@pytest.mark.parametrize("kind", ["predictor", "referring"])
def test_an_image_is_held_by_its_thread_and_not_after_a_failure(kind, pictures, request):
    shared = request.getfixturevalue(kind)
    encoded = shared.set_image(pictures[0])
    with ThreadPoolExecutor(1) as pool, pytest.raises(UserError, match="in the same thread"):
        pool.submit(shared.ground, "a cup").result()
    with ThreadPoolExecutor(1) as pool:
        given = pool.submit(lambda: shared.ground("a cup", image=encoded)).result()
    assert same(given, shared.ground("a cup"))
    with pytest.raises(UserError, match="No image at"):
        shared.set_image("no/such.jpg")
    with pytest.raises(UserError, match="No image is set"):
        shared.ground("a cup")


def test_an_encoded_image_does_not_change(predictor, pictures):
    encoded = predictor.encode_image(pictures[0])
    before = encoded.boxes.clone()
    predictor.ground(["left cup", "a dog"], image=encoded)
    predictor.detect(["a cup"], image=encoded)
    assert torch.equal(encoded.boxes, before)
    with pytest.raises(AttributeError):
        encoded.boxes = before


def test_batches_equal_single_images_in_order(predictor, pictures):
    texts = ["a red circle", "a cup"]
    alone = [predictor.detect(texts, image=predictor.encode_image(p), max_detections=20) for p in pictures]
    for size in (1, 3):
        found = list(predictor.detect_images(pictures, texts, batch_size=size, max_detections=20))
        assert all(same(a, b) for a, b in zip(found, alone, strict=True))


def test_detect_images_leaves_the_vocabulary_in_force(predictor, pictures):
    predictor.set_vocabulary(["bear", "tv"])
    assert next(predictor.detect_images(pictures[:1], ["cat"])).names == ("cat",)
    assert predictor.vocabulary == ("bear", "tv")
    assert next(predictor.detect_images(pictures[:1])).names == ("bear", "tv")


def test_answers_are_fp32_numpy_under_autocast(predictor, pictures):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predictor.set_image(pictures[0])
        arrays = [
            predictor.detect(["a dog"]).scores,
            predictor.ground("a dog").scores,
            predictor.ground("a dog").boxes,
            predictor.explain("a dog").similarity,
            predictor.explain("a dog").mask,
            *predictor.proposals(5),
        ]
    assert {a.dtype for a in arrays} == {np.dtype("float32")}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_towers_run_in_half_precision(predictor, pictures, precision, monkeypatch):
    exact = predictor.encode_image(pictures[0])
    monkeypatch.setattr(predictor.family, "precision", precision)
    half = predictor.encode_image(pictures[0])
    assert half.vectors.dtype == half.dense.dtype == torch.float32
    difference = torch.cosine_similarity(half.dense.flatten(1), exact.dense.flatten(1), dim=0)
    assert difference.min() > 0.98
    assert not torch.equal(half.dense, exact.dense)


def test_the_tree_that_is_shown_is_the_tree_that_is_used(predictor, pictures):
    predictor.set_image(pictures[0])
    tree = predictor.tree("the leftmost cup")
    assert tree.superlatives == ("left",)
    everything = predictor.ground("the cup", top_k=50)
    left = predictor.ground("the leftmost cup", top_k=1)
    best = everything.boxes[everything.scores.argsort()[::-1][:50]]
    centres = best[:, 0::2].mean(axis=1)
    assert left.boxes[0, 0::2].mean() < np.median(centres)
    plain = predictor.ground("the leftmost cup", reading="expression")
    assert plain.names == ("the leftmost cup",)
    assert not np.array_equal(plain.scores, left.scores)
    assert 0 <= predictor.ground("the leftmost cup", reading="both").scores[0] <= 1


def test_scores_of_an_expression_without_places_are_those_of_its_text(predictor, pictures):
    predictor.set_image(pictures[0])
    for reading in ("chunks", "expression", "both"):
        assert np.allclose(
            predictor.ground("a red mug", reading=reading).scores,
            predictor.ground("a red mug", reading="expression").scores,
        )


def test_expressions_are_encoded_as_they_stand_and_class_names_by_templates(predictor, pictures):
    encoded, text = predictor.encode_image(pictures[0]), "a red mug"
    banks = {
        t: build_bank(predictor.encoder, [text], templates=t, cache_dir=None, progress=False)
        for t in ("none", predictor.templates)
    }
    scores = {
        t: predictor.family.scores(encoded, b.with_seen([]).to(predictor.device)).max().item() for t, b in banks.items()
    }
    plain, templated = scores["none"], scores[predictor.templates]
    assert abs(plain - templated) > 1e-4
    for reading in READINGS:
        assert predictor.ground(text, reading=reading, image=encoded).scores[0] == pytest.approx(plain, abs=1e-6)
    assert predictor.detect([text], image=encoded).scores[0] == pytest.approx(templated, abs=1e-6)
    policy = predictor.policy
    cell = encoded.dense[:, 1, 2][None]
    said = {t: b.cosine(cell, policy, mask_mode=policy.dense_mode).item() for t, b in banks.items()}
    assert predictor.explain(text, image=encoded).similarity[1, 2] == pytest.approx(said["none"], abs=1e-5)
    assert abs(said["none"] - said[predictor.templates]) > 1e-4


@pytest.mark.parametrize("n", [0, 1])
def test_a_box_beyond_its_picture_is_cut_at_the_border(predictor, pictures, monkeypatch, n):
    """With a regressor that scales every box by 54."""
    regressor = predictor.detector.roi_head.bbox_head.fc_reg
    monkeypatch.setattr(regressor, "forward", lambda x: x.new_tensor([0.0, 0, 20, 20]).expand(len(x), 4))
    boxes = predictor.encode_image(pictures[n]).boxes
    assert boxes[:, :2].amin(0).tolist() == [0, 0]
    assert boxes[:, 2:].amax(0).tolist() == pytest.approx(pictures[n].size, abs=1e-3)


def test_boxes_in_one_place_are_one_answer_for_each_text(predictor, pictures):
    encoded = predictor.encode_image(pictures[0])
    near = encoded.boxes[:1] + torch.rand(len(encoded.boxes), 4, generator=torch.Generator().manual_seed(0))
    one = replace(encoded, boxes=near + torch.tensor([0.0, 0, 30, 30]))
    assert sorted(predictor.detect(["a cup", "a dog"], image=one).label_names) == ["a cup", "a dog"]
    for text in ("a cup", "the leftmost cup"):
        assert len(predictor.ground(text, top_k=50, image=one)) == 1


BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])


def test_ranks_by_a_tree_by_hand():
    cup = torch.tensor([0.6, 0.7, 0.1])
    rows, values = rank_by_tree(parse_expression("cup"), {"cup": cup}, BOXES, top_k=3)
    assert rows.tolist() == [1, 0, 2]
    assert torch.allclose(values, torch.tensor([0.7, 0.6, 0.1]))
    rows, values = rank_by_tree(parse_expression("leftmost cup"), {"cup": cup}, BOXES, top_k=3)
    assert rows[0] == 0
    assert values[0] == pytest.approx(0.6)
    # A good jar in the middle: only the box to its right keeps its score, however little it resembles a cup.
    jar = torch.tensor([0.01, 0.99, 0.01])
    rows, values = rank_by_tree(parse_expression("cup right of the jar"), {"cup": cup, "the jar": jar}, BOXES, top_k=3)
    assert rows[0] == 2
    assert values[0] == pytest.approx(0.1)
    assert values[1] < 0.01
    rows, _ = rank_by_tree(parse_expression("cup"), {"cup": cup}, BOXES, threshold=0.65, top_k=3)
    assert rows.tolist() == [1]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda p: p.ground("a cup", top_k=0), "top_k must be an integer of at least 1; got 0"),
        (lambda p: p.ground("a cup", threshold=float("nan")), "between 0 and 1; got nan"),
        (lambda p: p.detect(["a cup"], max_detections=-1), "max_detections"),
        (lambda p: p.detect([" "]), "phrase is empty"),
        (lambda p: p.detect([None]), "must be a string; got NoneType"),
        (lambda p: p.ground(7), "must be a string; got int"),
        (lambda p: p.proposals(0), "top_k"),
        (lambda p: p.set_image(None), "got NoneType"),
        (lambda p: p.set_image(b"png"), "got bytes.*BytesIO"),
        (lambda p: p.set_image([1, 2]), "got list"),
        (lambda p: p.set_image(np.zeros((0, 0, 3), dtype=np.uint8)), "uint8 RGB"),
        (lambda p: list(p.detect_images([], ["a"], batch_size=0)), "batch_size"),
        (lambda p: p.ground("a", reading="tree"), "reading"),
    ],
)
def test_bad_input_is_one_line(predictor, pictures, call, says):
    predictor.set_image(pictures[0])
    with pytest.raises(UserError, match=says) as error:
        call(predictor)
    assert "\n" not in str(error.value)

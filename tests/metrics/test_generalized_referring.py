"""Sentences with no, one and many targets: cases by hand, properties, real files, the tool."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from smartclip_det.core.errors import UserError
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.expressions.fgovd import load_fgovd, read_caption_scores
from smartclip_det.formats.expressions.loading import load_expressions
from smartclip_det.formats.expressions.record import Expression, GroundedBoxes
from smartclip_det.formats.segmentations import whole_mask
from smartclip_det.metrics.described_objects import dcube_metrics, fgovd_metrics
from smartclip_det.metrics.generalized_referring import (
    MaskPair,
    grec_metrics,
    greedy_matches,
    gres_metrics,
    phrase_recall,
    ris_metrics,
)
from smartclip_det.protocols.registry import evaluate

A, B, C = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (40.0, 0.0, 50.0, 10.0)


def sentence(n, *boxes, **more):
    return Expression(n, n, "x.jpg", "a dog", tuple(boxes), **more)


def found(*boxes, scores=None):
    return GroundedBoxes(tuple(boxes), tuple(scores or [0.9] * len(boxes)))


def test_two_of_three_targets_are_not_an_exact_answer():
    metrics, counts = grec_metrics([sentence(1, A, B, C)], {1: found(A, B)})
    assert metrics["f1_mean"] == pytest.approx(0.8)
    assert metrics["f1"] == 0.0
    assert counts["many_targets"] == 1
    assert grec_metrics([sentence(1, A, B)], {1: found(A, B)})[0]["f1"] == 1.0


def test_no_target_is_right_when_nothing_is_kept():
    truth = [sentence(1), sentence(2), sentence(3, A)]
    metrics, _ = grec_metrics(truth, {1: found(A, scores=[0.69]), 2: found(A, scores=[0.7])})
    assert metrics == {"f1": pytest.approx(1 / 3), "f1_mean": pytest.approx(1 / 3), "n_acc": 0.5, "t_acc": 0.0}
    assert grec_metrics(truth[:2], {})[0]["t_acc"] == -1


def test_overlap_of_exactly_one_half_and_the_two_overlaps():
    half = (0.0, 0.0, 10.0, 5.0)
    assert greedy_matches([half], [A], 0.5, "iou") == greedy_matches([half], [A], 0.5, "giou") == 1
    # Shifted: IoU 6/11 of each side... an IoU of 0.538 whose hull takes the GIoU below one half.
    shifted = (2.0, 1.5, 12.0, 11.5)
    assert greedy_matches([shifted], [A], 0.5, "iou") == 1
    assert greedy_matches([shifted], [A], 0.5, "giou") == 0
    with pytest.raises(UserError, match="overlap"):
        grec_metrics([sentence(1)], {}, overlap="diou")


def test_one_box_matches_one_target():
    assert greedy_matches([A, A], [A], 0.5, "iou") == 1
    metrics, _ = grec_metrics([sentence(1, A)], {1: found(A, A)})
    assert metrics["f1_mean"] == pytest.approx(2 / 3)


boxes = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 30), st.integers(1, 30)).map(
    lambda b: (float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3]))
)


@given(
    st.lists(st.tuples(st.lists(boxes, max_size=3), st.lists(boxes, max_size=4)), min_size=1, max_size=8), st.randoms()
)
def test_neither_order_nor_batches_matter(rows, random):
    truth = [sentence(n, *t) for n, (t, _) in enumerate(rows)]
    answers = {n: found(*p) for n, (_, p) in enumerate(rows)}
    expected = grec_metrics(truth, answers)
    shuffled = list(truth)
    random.shuffle(shuffled)
    assert grec_metrics(shuffled, dict(reversed(answers.items()))) == expected
    assert 0 <= expected[0]["f1"] <= expected[0]["f1_mean"] <= 1


def test_phrase_recall_by_both_rules():
    truth = [sentence(1, A, B), sentence(2, C), sentence(3)]
    answers = {1: found(C, A, scores=[0.9, 0.8]), 2: found(A)}
    metrics, counts = phrase_recall(truth, answers)
    assert (metrics["recall_1"], metrics["recall_5"]) == (0.0, 0.5)
    assert counts == {"phrases": 2, "without_box": 1, "missing": 0}
    around = (0.0, 0.0, 30.0, 10.0)
    assert phrase_recall(truth, {1: found(around)}, boxes="any")[0]["recall_10"] == 0.0
    assert phrase_recall(truth, {1: found(around)}, boxes="merged")[0]["recall_1"] == 0.5
    with pytest.raises(UserError, match="No phrase has a box"):
        phrase_recall([sentence(1)], {})


def rle(rows, columns, size=(10, 10)):
    mask = np.zeros(size, np.uint8)
    mask[rows, columns] = 1
    out = coco_mask.encode(np.asfortranarray(mask))
    return {"size": out["size"], "counts": out["counts"].decode()}


def test_masks_by_hand():
    left, top, all_of_it = (
        rle(slice(0, 10), slice(0, 5)),
        rle(slice(0, 5), slice(0, 10)),
        rle(slice(0, 10), slice(0, 10)),
    )
    pair = MaskPair.of([left], top, (10, 10))
    assert (pair.intersection, pair.union, pair.iou) == (25, 75, pytest.approx(1 / 3))
    pairs = [MaskPair.of([left], left, (10, 10)), pair]
    assert ris_metrics(pairs) == {
        "oiou": pytest.approx(75 / 125),
        "miou": pytest.approx(2 / 3),
        "p50": 0.5,
        "p60": 0.5,
        "p70": 0.5,
        "p80": 0.5,
        "p90": 0.5,
    }
    assert ris_metrics([MaskPair.of([all_of_it], left, (10, 10))])["p50"] == 1.0
    none, wrong = MaskPair.of([], None, (10, 10)), MaskPair.of([], left, (10, 10))
    missed = MaskPair.of([left], None, (10, 10))
    found_metrics = gres_metrics([none, wrong, missed, pairs[0]])
    assert found_metrics["giou"] == pytest.approx((1 + 0 + 0 + 1) / 4)
    assert found_metrics["ciou"] == pytest.approx(50 / (0 + 50 + 50 + 50))
    assert (found_metrics["n_acc"], found_metrics["t_acc"], found_metrics["p70"]) == (0.5, 0.5, 0.5)
    # Two overlapping polygons form one region.
    square = [[0, 0, 6, 0, 6, 10, 0, 10], [4, 0, 10, 0, 10, 10, 4, 10]]
    assert whole_mask([square], (10, 10)).sum() == 100
    with pytest.raises(UserError, match="sentence 7: Run lengths are for 10 x 10 pixels .*, but the image has 5 x 5"):
        MaskPair.of([left], None, (5, 5), 7)


def test_grefcoco_files_keep_none_and_many(tmp_path):
    instances = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 50, "height": 20}],
        "annotations": [
            {
                "id": n,
                "image_id": 1,
                "category_id": 1,
                "bbox": [20 * n, 0, 10, 10],
                "segmentation": [[20 * n, 0, 20 * n + 10, 0, 20 * n + 10, 10]],
            }
            for n in (0, 1, 2)
        ],
    }
    refs = [
        {
            "ref_id": n,
            "ann_id": ids,
            "image_id": 1,
            "split": "val",
            "file_name": "a.jpg",
            "sentences": [{"sent_id": n, "sent": "dogs"}],
        }
        for n, ids in enumerate(([0, 2], [-1], [1]))
    ]
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    (tmp_path / "grefs.json").write_text(json.dumps(refs))
    read = load_expressions(tmp_path / "grefs.json", split="val")
    assert [len(e.boxes) for e in read] == [len(e.masks) for e in read] == [2, 0, 1]
    (tmp_path / "pred.jsonl").write_text(
        "\n".join(json.dumps({"id": e.id, "boxes": e.boxes, "scores": [1.0] * len(e.boxes)}) for e in read)
    )
    result = evaluate("grefcoco", tmp_path / "grefs.json", tmp_path / "pred.jsonl")
    assert result.metrics == {"f1": 1.0, "f1_mean": 1.0, "n_acc": 1.0, "t_acc": 1.0}
    assert result.protocol["overlap"] == "giou"
    (tmp_path / "masks.jsonl").write_text(json.dumps({"id": 2, "segmentation": read[2].masks[0]}))
    result = evaluate("grefseg", tmp_path / "grefs.json", tmp_path / "masks.jsonl")
    assert result.metrics["giou"] == pytest.approx(2 / 3)
    assert result.counts["missing"] == 2
    with pytest.raises(UserError, match="grefseg supports"):
        evaluate("refseg", tmp_path / "grefs.json", tmp_path / "masks.jsonl")
    (tmp_path / "masks.jsonl").write_text(json.dumps({"id": 9, "segmentation": None}))
    with pytest.raises(UserError, match="id 9"):
        evaluate("grefseg", tmp_path / "grefs.json", tmp_path / "masks.jsonl")


def described(tmp_path):
    """Two images, three sentences, one of which describes an absence."""
    data = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 50, "height": 20, "sent_ids": [1, 2]},
            {"id": 2, "file_name": "b.jpg", "width": 50, "height": 20, "sent_ids": [3]},
        ],
        "categories": [
            {"id": 1, "name": "dog with a hat", "is_negative": False},
            {"id": 2, "name": "dog without a hat", "is_negative": True},
            {"id": 3, "name": "cat", "is_negative": False},
        ],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": [20 * n, 0, 10, 10], "area": 100, "iscrowd": 0}
            for n, (i, c) in enumerate(((1, 1), (1, 2), (2, 3)), 1)
        ],
    }
    path = tmp_path / "dcube.json"
    path.write_text(json.dumps(data))
    return path, data


def test_dcube_asks_each_image_for_its_sentences(tmp_path):
    path, data = described(tmp_path)
    truth = load_ground_truth(path)
    right = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.5}
        for a in data["annotations"]
    ]
    stray = [{"image_id": 2, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.9}]
    intra, per_class, counts = dcube_metrics(truth, right + stray, "intra")
    assert (intra["full"], intra["pres"], intra["abs"], intra["short"], intra["middle"]) == (1, 1, 1, 1, 1)
    assert intra["very_long"] == -1
    assert counts["not_asked"] == 1
    inter, _, _ = dcube_metrics(truth, right + stray, "inter")
    assert inter["pres"] < 1
    assert set(per_class) == {"dog with a hat", "dog without a hat", "cat"}
    (tmp_path / "pred.json").write_text(json.dumps(right))
    result = evaluate("dcube", path, tmp_path / "pred.json")
    assert result.metrics["full"] == pytest.approx(1)
    del data["images"][0]["sent_ids"]
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="needs sent_ids"):
        dcube_metrics(load_ground_truth(path), right, "intra")


def test_fgovd_ranks_on_the_real_slices(shared, tmp_path):
    expected = json.loads((shared / "fgovd_slice/expected.json").read_text())
    for name, facts in expected.items():
        path = shared / f"fgovd_slice/{name}.json"
        if not path.is_file():
            continue
        data = load_fgovd(path)
        best = {
            a["id"]: {a["category_id"]: 1.0, **dict.fromkeys(a["neg_category_ids"], 0.5)} for a in data["annotations"]
        }
        metrics, counts = fgovd_metrics(data, best)
        assert (metrics["top1"], metrics["mean_rank"]) == (1.0, 1.0)
        if "random_guess_top1" in facts:
            assert metrics["chance"] == pytest.approx(facts["random_guess_top1"])
            assert counts["annotations"] == facts["annotations"]
        tied = {a: dict.fromkeys(s, 0.5) for a, s in best.items()}
        assert fgovd_metrics(data, tied)[0]["top1"] == 0.0
        lines = "\n".join(json.dumps({"id": a, "scores": s}) for a, s in best.items())
        (tmp_path / "scores.jsonl").write_text(lines)
        assert evaluate("fgovd", path, tmp_path / "scores.jsonl").metrics == metrics
        del best[data["annotations"][0]["id"]]
        with pytest.raises(UserError, match="has no scores"):
            fgovd_metrics(data, best)


def test_caption_scores_that_do_not_fit_are_refused(tmp_path):
    for text, message in (("{}", "not {id, scores"), ('{"id": 1, "scores": {"2": NaN}}', "not finite")):
        (tmp_path / "s.jsonl").write_text(text)
        with pytest.raises(UserError, match=message):
            read_caption_scores(tmp_path / "s.jsonl")
    with pytest.raises(UserError, match="No prediction file"):
        read_caption_scores(tmp_path / "absent.jsonl")
    (tmp_path / "f.json").write_text(
        json.dumps({"images": [], "annotations": [{"id": 1, "category_id": 1}], "categories": []})
    )
    with pytest.raises(UserError, match="no neg_category_ids"):
        load_fgovd(tmp_path / "f.json")


def test_fgovd_map_on_a_real_slice_loses_what_a_negative_wins(shared, tmp_path):
    path = shared / "fgovd_slice/3_attributes.json"
    data = load_fgovd(path)
    found = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.5}
        for a in data["annotations"]
    ]

    def score(rows):
        (tmp_path / "found.json").write_text(json.dumps(rows))
        results = [evaluate("fgovd", path, tmp_path / "found.json", backend=b) for b in ("fast", "reference")]
        assert results[0].metrics["map"] == pytest.approx(results[1].metrics["map"], abs=1e-9)
        return results[0]

    assert score(found).metrics["map"] == pytest.approx(1.0)
    first = data["annotations"][0]
    wrong = {**found[0], "category_id": first["neg_category_ids"][0]}
    assert score([*found, {**wrong, "score": 0.4}]).metrics["map"] == pytest.approx(1.0)
    lost = score([*found, {**wrong, "score": 0.9}])
    own = {c["id"]: c["name"] for c in data["categories"]}[first["category_id"]]
    captions = len({a["category_id"] for a in data["annotations"]})
    assert sum(a["category_id"] == first["category_id"] for a in data["annotations"]) == 1
    assert lost.per_class[own] == 0
    assert lost.metrics["map"] == pytest.approx(1 - 1 / captions)
    elsewhere = {
        **wrong,
        "category_id": next(
            c["id"] for c in data["categories"] if c["id"] not in (first["category_id"], *first["neg_category_ids"])
        ),
    }
    assert score([*found, elsewhere]).counts["not_asked"] == 1

"""Bad input, constructed cases, file formats and the bootstrap."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartclip_det.core.errors import UserError
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.expressions.loading import load_expressions
from smartclip_det.formats.expressions.predictions import load_grounding_predictions
from smartclip_det.formats.expressions.record import Expression, GroundedBoxes
from smartclip_det.formats.expressions.refs import image_file_of
from smartclip_det.formats.predictions import check_predictions, read_predictions, write_columnar
from smartclip_det.metrics import bootstrap
from smartclip_det.metrics.coco import coco_metrics, evaluate_tables, open_vocabulary_metrics
from smartclip_det.metrics.lvis import evaluate_lvis, limit_detections
from smartclip_det.metrics.referring import box_overlap, referring_metrics, score_referring
from smartclip_det.metrics.voc import average_precision, evaluate_voc
from smartclip_det.protocols.registry import compare, evaluate


def small_truth(classes=("cat", "dog", "bus"), per_image=2, images=6, **extra):
    data = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 10 - k, "name": n, **extra} for k, n in enumerate(classes)],
    }
    for i in range(images):
        data["images"].append({"id": i + 1, "width": 100, "height": 100})
        for j in range(per_image):
            k = (i + j) % len(classes)
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + 1,
                    "image_id": i + 1,
                    "category_id": 10 - k,
                    "bbox": [10 + 40 * j, 10, 30, 30],
                    "area": 900,
                    "iscrowd": 0,
                }
            )
    return load_ground_truth(data)


def perfect(truth, score=0.9):
    return [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": list(a["bbox"]), "score": score}
        for a in truth.data["annotations"]
    ]


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_perfect_hopeless_and_permuted_classes(backend):
    truth = small_truth()
    good = perfect(truth)
    assert evaluate_tables(truth, good, backend=backend).ap() == pytest.approx(1.0)
    away = [{**r, "bbox": [0, 80, 5, 5]} for r in good]
    assert evaluate_tables(truth, away, backend=backend).ap() == 0
    assert evaluate_tables(truth, [], backend=backend).ap() == 0
    wrong = [{**r, "category_id": {10: 9, 9: 8, 8: 10}[r["category_id"]]} for r in good]
    assert evaluate_tables(truth, wrong, backend=backend).ap() == 0


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_classes_are_matched_by_name_in_any_order(backend):
    """The file's ids run against the order of names; half of the dogs are detected."""
    truth = small_truth()
    results = perfect(truth)
    dogs = [r for r in results if r["category_id"] == 9]
    kept = [r for r in results if r["category_id"] != 9] + dogs[: len(dogs) // 2]
    for names in (["cat", "dog", "bus"], ["bus", "dog", "cat"], ["dog", "bus", "cat"]):
        tables = evaluate_tables(truth, kept, backend=backend, names=names)
        ap = tables.class_ap(0.5)
        assert ap["cat"] == ap["bus"] == pytest.approx(1.0)
        assert ap["dog"] == pytest.approx(51 / 101)
        metrics = open_vocabulary_metrics(tables, ["bus"], ["dog"])
        assert metrics["base_ap50"] == pytest.approx(1.0)
        assert metrics["novel_ap50"] == pytest.approx(51 / 101)
        assert metrics["all_ap50"] == pytest.approx((1 + 51 / 101) / 2)
    with pytest.raises(UserError, match=r"'buss' \(nearest: bus"):
        evaluate_tables(truth, kept, backend=backend, names=["buss"])


def test_ids_that_evaluators_cannot_use_are_counted_and_missing_ones_made():
    truth = small_truth()
    data = {**truth.data, "annotations": [{**a, "id": n} for n, a in enumerate(truth.data["annotations"])]}
    assert check_predictions([], load_ground_truth(data))[1]["renumbered_annotation_ids"] == 1
    data["annotations"] = [{**a, "id": 5} for a in data["annotations"]]
    assert check_predictions([], load_ground_truth(data))[1]["renumbered_annotation_ids"] == 11
    data["annotations"] = [{k: v for k, v in a.items() if k != "id"} for a in data["annotations"]]
    made = load_ground_truth(data)
    assert "renumbered_annotation_ids" not in check_predictions([], made)[1]
    for backend in ("fast", "reference"):
        assert evaluate_tables(made, perfect(made), backend=backend).ap() == pytest.approx(1.0)


@pytest.mark.parametrize("backend", ["fast", "reference"])
@pytest.mark.parametrize("protocol", ["coco", "lvis", "voc"])
def test_no_predictions_score_zero(backend, protocol, tmp_path):
    truth = TestLvis().truth() if protocol == "lvis" else small_truth()
    (tmp_path / "ann.json").write_text(json.dumps(truth.data))
    (tmp_path / "pred.json").write_text("[]")
    metrics = evaluate(protocol, tmp_path / "ann.json", tmp_path / "pred.json", backend=backend).metrics
    assert metrics[{"coco": "bbox_mAP", "lvis": "bbox_AP", "voc": "mAP"}[protocol]] == 0


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_lvis_masks_as_polygons_with_and_without_boxes(backend):
    truth = TestLvis().truth()
    for a in truth.data["annotations"]:
        x, y, w, h = a["bbox"]
        a["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    for i in truth.data["images"]:
        i["height"], i["width"] = 100, 200
    results = [
        {**r, "segmentation": a["segmentation"]} for r, a in zip(perfect(truth), truth.data["annotations"], strict=True)
    ]
    plain = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
    for rows in (results, plain):
        metrics, _ = evaluate_lvis(truth, rows, backend=backend, iou_type="segm")
        assert metrics["segm_AP"] == pytest.approx(1.0)
        assert metrics["segm_APm"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("part", "entry", "message"),
    [
        ("images", {"width": 5}, "images lacks id"),
        ("categories", {"id": 1}, "categories lacks name"),
        ("annotations", {"id": 1, "image_id": 1, "category_id": 1}, "annotations lacks bbox"),
        ("annotations", {"image_id": 1, "category_id": 10, "bbox": [1, 2, 3]}, r"bbox=\[1, 2, 3\]"),
        ("annotations", {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}, "category 1, which is not listed"),
        ("annotations", {"image_id": 99, "category_id": 1, "bbox": [1, 2, 3, 4]}, "image 99, which is not listed"),
        ("annotations", {"image_id": [1], "category_id": 1, "bbox": [1, 2, 3, 4]}, "ids must be integers or strings"),
        ("annotations", 5, "annotations lacks image_id"),
    ],
)
def test_broken_annotation_files_are_refused(part, entry, message):
    data = small_truth().data
    with pytest.raises(UserError, match=message):
        load_ground_truth({**data, part: [*data[part], entry]})
    with pytest.raises(UserError, match=f"{part} must be a list"):
        load_ground_truth({**data, part: None})


def test_missing_area_and_crowd_flags_are_filled_in():
    data = small_truth().data
    bare = {
        **data,
        "annotations": [{k: v for k, v in a.items() if k not in ("area", "iscrowd")} for a in data["annotations"]],
    }
    truth = load_ground_truth(bare)
    for backend in ("fast", "reference"):
        assert evaluate_tables(truth, perfect(truth), backend=backend).ap() == pytest.approx(1.0)


def test_limits_and_splits_are_checked(tmp_path):
    truth = small_truth()
    (tmp_path / "ann.json").write_text(json.dumps(truth.data))
    (tmp_path / "pred.json").write_text(json.dumps(perfect(truth)))
    files = ("ov-coco", tmp_path / "ann.json", tmp_path / "pred.json")
    split = tmp_path / "split.json"
    for content, message in (
        ({"base": 5, "novel": ["dog"]}, "list of names"),
        ({"base": "cat", "novel": ["dog"]}, "list of names"),
        ({"base": ["cat", "cat"], "novel": ["dog"]}, "twice: cat"),
        ({"base": ["dog"], "novel": ["dog"]}, "both base and novel: dog"),
    ):
        (tmp_path / "split.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            evaluate(*files, split_file=split)
    (tmp_path / "split.json").write_text(json.dumps({"base": ["cat", "bus"], "novel": ["dog"]}))
    assert evaluate(*files, split_file=split).metrics["novel_ap50"] == pytest.approx(1.0)
    with pytest.raises(UserError, match="need a positive limit"):
        evaluate(*files, split_file=split, max_dets=-1)


class TestBadPredictions:
    def refuse(self, change, message):
        truth = small_truth()
        results = perfect(truth)
        results[1] = {**results[1], **change}
        with pytest.raises(UserError, match=message):
            check_predictions(results, truth)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"image_id": 999}, "Prediction 1 .*no image 999"),
            ({"score": float("nan")}, "score is not a finite"),
            ({"score": "0.5"}, "score is not a finite"),
            ({"score": True}, "score is not a finite"),
            ({"score": 10**400}, "score is not a finite"),
            ({"image_id": [1]}, "must be an integer or a string"),
            ({"category_id": {}}, "must be an integer or a string"),
            ({"bbox": [1, 2, float("inf"), 4]}, "non-finite number"),
            ({"bbox": [1, 2, 3]}, r"\[x, y, width, height\]"),
            ({"bbox": [50, 50, -10, 4]}, "negative"),
        ],
    )
    def test_refused(self, change, message):
        self.refuse(change, message)

    def test_missing_key(self):
        truth = small_truth()
        with pytest.raises(UserError, match="lacks score"):
            check_predictions([{"image_id": 1, "category_id": 10, "bbox": [0, 0, 1, 1]}], truth)

    def test_unknown_categories_and_outside_boxes_are_counted(self):
        truth = small_truth()
        results = [*perfect(truth), {"image_id": 1, "category_id": 77, "bbox": [90, 90, 30, 30], "score": 0.1}]
        _, counts = check_predictions(results, truth)
        assert counts == {"predictions": 13, "unknown_category": 1, "outside_image": 1}

    def test_xyxy_boxes_show_in_the_counts(self):
        truth = small_truth()
        results = [{**r, "bbox": [60, 60, 95, 95]} for r in perfect(truth)]
        assert check_predictions(results, truth)[1]["outside_image"] == len(results)

    def test_files(self, tmp_path):
        truth = small_truth()
        with pytest.raises(UserError, match="No prediction file"):
            read_predictions(tmp_path / "p.json", truth)
        (tmp_path / "p.json").write_text('[{"a": 1}')
        with pytest.raises(UserError, match="truncated"):
            read_predictions(tmp_path / "p.json", truth)
        (tmp_path / "d.json").write_text("{}")
        with pytest.raises(UserError, match="JSON list of results"):
            read_predictions(tmp_path / "d.json", truth)
        with pytest.raises(UserError, match="lacks images, annotations, categories"):
            load_ground_truth(tmp_path / "d.json")
        with pytest.raises(UserError, match="No annotation file"):
            load_ground_truth(tmp_path / "none.json")


def test_columnar_file_gives_the_same_digits_and_matches_by_name(tmp_path):
    truth = small_truth()
    rng = np.random.default_rng(0)
    names = ["bus", "cat", "dog", "zebra"]
    rows, listed = [], []
    ids = {"bus": 8, "cat": 10, "dog": 9, "zebra": 77}
    for i in range(60):
        x, y = rng.uniform(0, 60, 2).astype("float32")
        box = [float(x), float(y), float(x + np.float32(30)), float(y + np.float32(30))]
        k, score = i % 4, float(np.float32(rng.random()))
        rows.append((i % 6 + 1, box, score, k))
        listed.append(
            {
                "image_id": i % 6 + 1,
                "category_id": ids[names[k]],
                "score": score,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            }
        )
    images, boxes, scores, places = (list(column) for column in zip(*rows, strict=True))
    write_columnar(
        tmp_path / "p.safetensors",
        images,
        np.array(boxes, dtype=np.float32),
        np.array(scores, dtype=np.float32),
        np.array(places),
        names,
        {"name": "test"},
    )
    read = read_predictions(tmp_path / "p.safetensors", truth)
    _, counts = check_predictions(read, truth)
    assert counts["unknown_category"] == 15
    for a, b in zip(read, listed, strict=True):
        assert a["bbox"] == b["bbox"]
        assert a["score"] == b["score"]
    assert coco_metrics(evaluate_tables(truth, read)) == coco_metrics(evaluate_tables(truth, listed))


class TestLvis:
    def truth(self):
        classes = [("r1", "r"), ("c1", "c"), ("f1", "f"), ("f2", "f")]
        data = {
            "images": [],
            "annotations": [],
            "categories": [{"id": k + 1, "name": n, "frequency": f} for k, (n, f) in enumerate(classes)],
        }
        for i in range(8):
            data["images"].append(
                {
                    "id": i + 1,
                    "width": 200,
                    "height": 100,
                    "neg_category_ids": [4] if i == 0 else [],
                    "not_exhaustive_category_ids": [3] if i == 1 else [],
                    "coco_url": "a/b.jpg",
                }
            )
            for k in range(3):
                data["annotations"].append(
                    {
                        "id": len(data["annotations"]) + 1,
                        "image_id": i + 1,
                        "category_id": k + 1,
                        "bbox": [60 * k, 10, 40, 40],
                        "area": 1600,
                        "segmentation": [],
                    }
                )
        data["annotations"].append(
            {"id": 99, "image_id": 3, "category_id": 4, "bbox": [0, 60, 30, 30], "area": 900, "segmentation": []}
        )
        return load_ground_truth(data)

    @pytest.mark.parametrize("backend", ["fast", "reference"])
    def test_groups_and_federation(self, backend):
        truth = self.truth()
        results = perfect(truth)
        # Drop half of the rare class; false positives where the class was not annotated, or not exhaustively.
        results = [r for r in results if not (r["category_id"] == 1 and r["image_id"] > 4)]
        free = [
            {"image_id": 5, "category_id": 4, "bbox": [100, 60, 30, 30], "score": 0.99},
            {"image_id": 2, "category_id": 3, "bbox": [0, 60, 30, 30], "score": 0.99},
        ]
        metrics, per_class = evaluate_lvis(truth, results + free, backend=backend)
        assert metrics["bbox_APr"] == pytest.approx(51 / 101)
        assert metrics["bbox_APc"] == pytest.approx(1.0)
        assert metrics["bbox_APf"] == pytest.approx(1.0)
        costs = [{"image_id": 1, "category_id": 4, "bbox": [100, 60, 30, 30], "score": 0.99}]
        metrics, per_class = evaluate_lvis(truth, results + costs, backend=backend)
        assert per_class["f2"] == pytest.approx(0.5)

    @pytest.mark.parametrize("extra", [{}, {"segmentation": {}}])
    def test_limit_keeps_the_best_of_each_image_and_ties_in_file_order(self, extra):
        rows = [
            {"image_id": 1, "category_id": i, "bbox": [0, 0, 1, 1], "score": s, **extra}
            for i, s in enumerate([0.5, 0.9, 0.5, 0.1])
        ]
        assert [r["category_id"] for r in limit_detections(rows, 2)] == [1, 0]
        assert len(limit_detections(rows, -1)) == 4

    def test_coco_files_are_refused(self):
        with pytest.raises(UserError, match="lack neg_category_ids"):
            evaluate_lvis(small_truth(), [])


class TestVoc:
    def test_hand_computed_curve(self):
        # Two objects; hit, miss, hit: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
        hits = np.array([True, False, True])
        assert average_precision(hits, ~hits, 2, "all") == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
        assert average_precision(hits, ~hits, 2, "11") == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)

    def test_second_hit_on_a_box_is_a_miss_and_difficult_can_be_left_out(self):
        truth = small_truth(("cat",), per_image=1, images=2)
        results = perfect(truth)
        assert evaluate_voc(truth, results)[0]["mAP"] == pytest.approx(1.0)
        twice = [*perfect(truth, 0.5), *perfect(truth, 0.9)]
        assert evaluate_voc(truth, twice)[0]["mAP"] == pytest.approx(1.0)
        truth.data["annotations"][0]["difficult"] = 1
        for backend in ("fast", "reference"):
            one = [r for r in results if r["image_id"] == 1]
            assert evaluate_voc(truth, one, difficult="ignore", backend=backend)[0]["mAP"] == pytest.approx(0.0)
            assert evaluate_voc(truth, results, difficult="ignore", backend=backend)[0]["mAP"] == pytest.approx(1.0)

    def test_folder_errors(self, tmp_path):
        from smartclip_det.formats.voc import load_voc_folder

        with pytest.raises(UserError, match="No VOC XML"):
            load_voc_folder(tmp_path)
        (tmp_path / "a.xml").write_text("<annotation><object>")
        with pytest.raises(UserError, match="not valid XML"):
            load_voc_folder(tmp_path)


class TestReferring:
    box = (10.0, 10.0, 30.0, 30.0)

    def expression(self, key=1, boxes=None):
        return Expression(key, 5, "a.jpg", "the cat", boxes if boxes is not None else (self.box,))

    def test_exactly_half_is_a_hit_unless_strict(self):
        half = GroundedBoxes(((10.0, 10.0, 30.0, 20.0),), (1.0,))
        scores = score_referring([self.expression()], {1: half})
        assert scores.overlap.tolist() == [0.5]
        assert referring_metrics(scores.overlap)["acc50"] == 1.0
        assert referring_metrics(scores.overlap, strict=True)["acc50"] == 0.0

    def test_giou_can_differ_from_iou(self):
        other = (10.0, 10.0, 40.0, 20.0)
        assert box_overlap(self.box, other) == pytest.approx(200 / 500)
        assert box_overlap(self.box, other, "giou") == pytest.approx(0.4 - (600 - 500) / 600)
        assert box_overlap(self.box, (50, 50, 60, 60), "giou") < 0
        assert box_overlap((1, 1, 1, 1), (1, 1, 1, 1)) == 0.0

    def test_missing_and_empty_count_as_wrong(self):
        truth = [self.expression(i) for i in range(3)]
        scores = score_referring(truth, {0: GroundedBoxes((self.box,), (1.0,)), 1: GroundedBoxes((), ())})
        assert scores.counts == {"sentences": 3, "missing": 1, "empty": 1}
        assert referring_metrics(scores.overlap)["acc50"] == pytest.approx(1 / 3)

    def test_other_protocols_and_foreign_predictions_are_refused(self):
        with pytest.raises(UserError, match="grefcoco"):
            score_referring([self.expression(boxes=())], {})
        with pytest.raises(UserError, match="another split"):
            score_referring([self.expression()], {7: GroundedBoxes((), ())})

    def test_best_score_wins_and_order_does_not_matter(self, tmp_path):
        row = {"id": 1, "boxes": [[0, 0, 5, 5], list(self.box)], "scores": [0.1, 0.9]}
        (tmp_path / "p.jsonl").write_text(json.dumps(row))
        assert load_grounding_predictions(tmp_path / "p.jsonl")[1].boxes[0] == self.box

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ('{"id": 1, "boxes": [[0, 0, 5, NaN]], "scores": [1]}', "not finite"),
            ('{"id": 1, "boxes": [[9, 9, 5, 5]], "scores": [1]}', "--box-format xywh"),
            ('{"id": 1, "boxes": [[0, 0, 5, 5]], "scores": []}', "1 boxes but 0 scores"),
            ('{"id": 1, "boxes": [[0, 0, 5]]}', "four numbers"),
            ('{"boxes": []}', "not {id, boxes, scores}"),
            ('[{"id": 1, "boxes": []}]', "line 1 holds a list. Write one object per line"),
            ('{"id": 1, "boxes": []}\n{"id": 1, "boxes": []}', "is repeated"),
            ('{"id": 1,', "line 1"),
        ],
    )
    def test_bad_prediction_lines(self, tmp_path, row, message):
        (tmp_path / "p.jsonl").write_text(row)
        with pytest.raises(UserError, match=message):
            load_grounding_predictions(tmp_path / "p.jsonl")

    def test_pickles_with_classes_do_not_run(self, tmp_path):
        marker = tmp_path / "ran"

        class Evil:
            def __reduce__(self):
                return (open, (str(marker), "w"))

        (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([Evil()]))
        with pytest.raises(UserError, match="no code in it was run"):
            load_expressions(tmp_path / "refs(unc).p")
        assert not marker.exists()

    def test_python_2_pickles_and_file_names(self, shared, tmp_path):
        records = json.loads((shared / "refcoco_ref0/refs_unc_records.json").read_text())
        (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(records[:1], protocol=0))
        box = json.loads((shared / "refcoco_ref0/box.json").read_text())
        instances = {
            "images": [{"id": 581857, "file_name": "COCO_train2014_000000581857.jpg", "width": 640, "height": 480}],
            "annotations": [{"id": box["ann_id"], "image_id": 581857, "bbox": box["bbox"]}],
        }
        with pytest.raises(UserError, match="needs its boxes"):
            load_expressions(tmp_path / "refs(unc).p")
        (tmp_path / "instances.json").write_text(json.dumps(instances))
        found = load_expressions(tmp_path / "refs(unc).p")
        assert [e.sentence for e in found] == ["the lady with the blue shirt", "lady with back to us", "blue shirt"]
        assert [e.id for e in found] == [0, 1, 2]
        assert found[0].boxes[0] == pytest.approx((103.93, 299.99, 238.15, 477.41))
        assert image_file_of("COCO_train2014_000000581857_16.jpg", 1719310) == "COCO_train2014_000000581857.jpg"
        with pytest.raises(UserError, match="no split 'testA'. It has: train"):
            load_expressions(tmp_path / "refs(unc).p", split="testA")

    def test_other_json_is_told_apart(self, tmp_path):
        (tmp_path / "x.json").write_text('{"images": []}')
        with pytest.raises(UserError, match="no expressions in a known layout. Known: JSON lines; MDETR"):
            load_expressions(tmp_path / "x.json")


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0, 100), min_size=8, max_size=8))
def test_overlap_is_symmetric_and_bounded(v):
    a = (min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3]))
    b = (min(v[4], v[6]), min(v[5], v[7]), max(v[4], v[6]), max(v[5], v[7]))
    assert box_overlap(a, b) == pytest.approx(box_overlap(b, a))
    assert 0 <= box_overlap(a, b) <= 1 + 1e-9
    assert -1 - 1e-9 <= box_overlap(a, b, "giou") <= box_overlap(a, b) + 1e-9


class TestBootstrap:
    def noisy(self, truth, seed, drop):
        rng = np.random.default_rng(seed)
        return [
            {**r, "score": float(rng.random()), "bbox": [r["bbox"][0] + float(rng.normal(0, 3)), *r["bbox"][1:]]}
            for r in perfect(truth)
            if rng.random() > drop
        ]

    def test_weights_equal_repeated_images(self):
        """Drawing an image twice equals writing it twice into both files."""
        truth = small_truth(images=5)
        results = self.noisy(truth, 1, 0.2)
        names = ["cat", "dog", "bus"]
        metric, images = bootstrap.detection_metric(bootstrap.coco_matches(truth, results, names))
        weights = np.array([2.0, 0.0, 1.0, 3.0, 1.0])
        data = {"images": [], "annotations": [], "categories": truth.data["categories"]}
        repeated = []
        for i, w in enumerate(weights, 1):
            for copy in range(int(w)):
                key = 100 * i + copy
                data["images"].append({"id": key})
                data["annotations"] += [
                    {**a, "id": 1000 * copy + 10000 * i + a["id"], "image_id": key}
                    for a in truth.data["annotations"]
                    if a["image_id"] == i
                ]
                repeated += [{**r, "image_id": key} for r in results if r["image_id"] == i]
        tables = evaluate_tables(load_ground_truth(data), repeated, backend="reference")
        assert images == 5
        assert metric(np.ones(5))["mAP"] == pytest.approx(evaluate_tables(truth, results).ap(), abs=1e-9)
        assert metric(weights)["mAP"] == pytest.approx(tables.ap(), abs=1e-9)
        assert metric(weights)["mAP_50"] == pytest.approx(tables.ap(0.5), abs=1e-9)

    def test_a_clear_difference_is_found_and_none_is_not(self, tmp_path):
        truth = small_truth(images=40)
        (tmp_path / "ann.json").write_text(json.dumps(truth.data))
        files = {}
        for name, seed, drop in (("good", 0, 0.05), ("bad", 1, 0.6), ("same", 0, 0.05)):
            files[name] = tmp_path / f"{name}.json"
            files[name].write_text(json.dumps(self.noisy(truth, seed, drop)))
        ann = tmp_path / "ann.json"
        stamp, outcome = compare("coco", ann, files["bad"], files["good"], resamples=200, progress=False)
        assert outcome["mAP"]["low"] > 0
        assert outcome["mAP"]["p"] < 0.05
        assert outcome["mAP"]["b"] == pytest.approx(evaluate("coco", ann, files["good"]).metrics["bbox_mAP"], abs=1e-9)
        assert stamp["resamples"] == 200
        _, outcome = compare("coco", ann, files["same"], files["good"], resamples=50, progress=False)
        assert outcome["mAP"]["difference"] == 0
        assert outcome["mAP"]["p"] == 1.0

    @pytest.mark.parametrize(
        ("protocol", "ann", "pred", "names"),
        [
            (
                "lvis",
                "lvis_val100/lvis_val_100.json",
                "lvis_val100/peer_results_A.json",
                {"AP": "bbox_AP", "APr": "bbox_APr", "APf": "bbox_APf"},
            ),
            (
                "voc",
                "voc_real_detections/Annotations",
                "voc_real_detections/detections_coco.json",
                {"mAP": "mAP", "mAP_11": "mAP_11"},
            ),
            (
                "ov-coco",
                "coco_mini_train/instances_train2017.json",
                "coco_mini_train/peer_results.json",
                {"novel_ap50": "novel_ap50"},
            ),
        ],
    )
    def test_every_protocol_starts_from_its_own_metric(self, shared, tmp_path, protocol, ann, pred, names):
        rows = json.loads((shared / pred).read_text())
        (tmp_path / "half.json").write_text(json.dumps(rows[: len(rows) // 2]))
        half = tmp_path / "half.json"
        _, outcome = compare(protocol, shared / ann, half, shared / pred, resamples=20, progress=False)
        metrics = evaluate(protocol, shared / ann, shared / pred).metrics
        for ours, theirs in names.items():
            assert outcome[ours]["b"] == pytest.approx(metrics[theirs], abs=1e-9)
            assert outcome[ours]["difference"] >= 0

    def test_voc_results_may_name_images_by_stem(self, shared, tmp_path):
        folder = shared / "voc_real_detections"
        stems = {
            i["id"]: i["file_name"].removesuffix(".jpg")
            for i in json.loads((folder / "gt_coco.json").read_text())["images"]
        }
        rows = [
            {**r, "image_id": stems[r["image_id"]]} for r in json.loads((folder / "detections_coco.json").read_text())
        ]
        (tmp_path / "stems.json").write_text(json.dumps(rows))
        by_number = evaluate("voc", folder / "Annotations", folder / "detections_coco.json")
        by_stem = evaluate("voc", folder / "Annotations", tmp_path / "stems.json")
        assert by_stem.metrics == by_number.metrics

    def test_strict_hits_are_compared_strictly(self, tmp_path):
        (tmp_path / "t.jsonl").write_text(
            json.dumps({"id": 1, "boxes": [[10, 10, 30, 30]], "image_id": 1, "sentence": "a"})
        )
        (tmp_path / "p.jsonl").write_text(json.dumps({"id": 1, "boxes": [[10, 10, 30, 20]], "scores": [1]}))
        ann, pred = tmp_path / "t.jsonl", tmp_path / "p.jsonl"
        stamp, outcome = compare("refcoco", ann, pred, pred, resamples=5, progress=False, strict=True)
        assert outcome["acc50"]["a"] == evaluate("refcoco", ann, pred, strict=True).metrics["acc50"] == 0.0
        assert stamp["strict"] is True

    def test_sentences_of_one_image_move_together(self):
        metric, images = bootstrap.referring_metric(np.array([1.0, 0.6, 0.0]), ["a", "a", "b"])
        assert images == 2
        assert metric(np.array([1.0, 1.0]))["acc50"] == pytest.approx(2 / 3)
        assert metric(np.array([0.0, 2.0]))["acc50"] == 0
        assert metric(np.array([2.0, 0.0]))["miou"] == pytest.approx(0.8)


def test_result_file_is_whole_stamped_and_unrounded(tmp_path):
    import subprocess
    import sys

    truth = small_truth(images=3)
    (tmp_path / "ann.json").write_text(json.dumps(truth.data))
    (tmp_path / "pred.json").write_text(json.dumps(perfect(truth)[1:]))
    from tests.conftest import REPO

    command = [
        sys.executable,
        str(REPO / "tools/evaluate.py"),
        "coco",
        "--ann",
        str(tmp_path / "ann.json"),
        "--pred",
        str(tmp_path / "pred.json"),
        "--out",
        str(tmp_path / "m.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "m.json").read_text())
    assert content["metrics"]["bbox_mAP_50"] == pytest.approx((51 / 101 + 1 + 1) / 3)
    for key in ("name", "ap", "max_dets", "backend", "ann_sha256", "pred_sha256", "command", "code", "versions"):
        assert key in content["protocol"]
    done = subprocess.run(
        [*command[:3], "--ann", "absent.json", "--pred", "x.json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert "error: No annotation file at absent.json" in done.stderr
    assert "Traceback" not in done.stderr

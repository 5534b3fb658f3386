"""Validation of annotation files: errors, fixes, and that nothing else changes."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartclip_det.core.errors import UserError
from smartclip_det.formats.annotation_check import AnnotationCheck
from smartclip_det.formats.annotations import annotated_only, load_ground_truth, with_numbers
from smartclip_det.formats.columns import DetectionColumns
from smartclip_det.formats.predictions import check_predictions, read_predictions, write_columnar
from smartclip_det.metrics.coco import evaluate_tables
from smartclip_det.metrics.lvis import evaluate_lvis
from smartclip_det.utils import notes

BACKENDS = ["fast", "reference"]


@pytest.fixture(autouse=True)
def fresh_notes(monkeypatch):
    monkeypatch.setattr(notes, "_printed", set())


def content(images=2, **annotation):
    """Two classes with a box each in every image."""
    boxes = [[10, 10, 40, 40], [64, 40, 32, 40]]
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 128, "height": 96} for i in range(1, images + 1)],
        "annotations": [
            {
                "id": 2 * (i - 1) + c,
                "image_id": i,
                "category_id": c,
                "bbox": list(boxes[c - 1]),
                "area": 1600,
                "iscrowd": 0,
                **annotation,
            }
            for i in range(1, images + 1)
            for c in (1, 2)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def perfect(data):
    return [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9 - n / 100}
        for n, a in enumerate(data["annotations"])
    ]


def score(data, backend="fast", results=None):
    truth = load_ground_truth(data)
    checked, _ = check_predictions(perfect(truth.data) if results is None else results, truth)
    return evaluate_tables(truth, checked, backend=backend).ap()


def test_a_right_file_is_left_as_it_is(capsys):
    data = content()
    before = copy.deepcopy(data)
    truth = load_ground_truth(data)
    assert truth.data == data == before
    assert not truth.report.counts
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("part", "n", "change", "message"),
    [
        ("images", 1, {"id": 1}, "entry 1 of images has the id 1, which an earlier entry has"),
        ("images", 1, {"id": True}, "id=True; ids must be integers or strings"),
        ("images", 1, {"id": 1.5}, "id=1.5; ids must be integers or strings"),
        ("images", 1, {"width": "wide"}, "width='wide'; expected an integer number of pixels"),
        ("images", 1, {"height": -96}, "height=-96"),
        ("images", 1, {"width": 12.5}, "width=12.5"),
        ("images", 1, {"neg_category_ids": None}, "neg_category_ids=None; expected a list of category ids"),
        ("categories", 1, {"id": 1}, r"entry 1 of categories has the id 1 of entry 0 \('cat' and 'dog'\)"),
        ("categories", 1, {"name": "cat"}, r"repeats category names: \['cat'\]"),
        ("categories", 1, {"name": 7}, "name=7; a name must be a string"),
        (
            "annotations",
            3,
            {"category_id": "2"},
            r"entry 3 of annotations is of category '2'.*lists 2: .*Use the same type",
        ),
        ("annotations", 3, {"image_id": "2"}, "entry 3 of annotations is for image '2'.*Use the same type"),
        ("annotations", 3, {"category_id": 12}, "entry 3 of annotations is of category 12, which is not listed"),
        ("annotations", 3, {"image_id": 12}, "entry 3 of annotations is for image 12, which is not listed"),
        ("annotations", 3, {"category_id": None}, "category_id=None"),
        ("annotations", 3, {"area": "large"}, "entry 3 of annotations has area='large'.*width x height"),
        ("annotations", 3, {"area": float("nan")}, "area=nan"),
        ("annotations", 3, {"area": -1}, "area=-1"),
        ("annotations", 3, {"area": True}, "area=True"),
        ("annotations", 3, {"iscrowd": "maybe"}, "iscrowd='maybe'; expected 0 or 1"),
        ("annotations", 3, {"iscrowd": 2}, "iscrowd=2"),
        ("annotations", 3, {"ignore": "x"}, "ignore='x'"),
        ("annotations", 3, {"bbox": []}, r"bbox=\[\].*An image without objects has no annotation"),
        ("annotations", 3, {"bbox": None}, "bbox=None"),
        ("annotations", 3, {"bbox": ["1", 2, 3, 4]}, "four numbers, not strings"),
        ("annotations", 3, {"bbox": [50, 50, -10, 4]}, "width or height is negative"),
        ("annotations", 3, {"bbox": [1, 2, float("inf"), 4]}, "non-finite number"),
        ("annotations", 3, {"bbox": [1, 2, 1e308, 4]}, "non-finite number"),
        ("annotations", 3, {"bbox": [1, 2, 10**400, 4]}, "non-finite number"),
        ("annotations", 3, {"bbox": {"x": 1}}, "expected .x, y, width, height"),
    ],
)
def test_refused_by_entry(part, n, change, message):
    data = content()
    data[part][n] = {**data[part][n], **change}
    with pytest.raises(UserError, match=message):
        load_ground_truth(data)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("change", "reason", "count"),
    [
        ({"id": 0}, "renumbered_annotation_ids", 4),
        ({"id": 7}, "renumbered_annotation_ids", 3),
        ({"id": -3}, "renumbered_annotation_ids", 4),
        ({"id": "a1"}, "renumbered_annotation_ids", 4),
        ({"id": 2**64}, "renumbered_annotation_ids", 4),
        ({"id": None}, "filled_annotation_ids", 4),
        ({"area": None}, "filled_area", 4),
        ({"area": "1600.0"}, "numbers_as_texts", 4),
        ({"iscrowd": None}, "filled_iscrowd", 4),
        ({"iscrowd": "0"}, "numbers_as_texts", 4),
        ({"iscrowd": False}, None, 0),
        ({"iscrowd": 0.0, "ignore": "false"}, "numbers_as_texts", 4),
        ({"image_id": 1.0, "category_id": 1.0}, "decimal_ids", 8),
    ],
)
def test_mended_told_and_then_scored_in_full(change, reason, count, backend, capsys):
    data = content(**change)
    assert score(data, backend) == pytest.approx(1.0)
    report = load_ground_truth(data).report
    assert dict(report.counts) == ({reason: count} if reason else {})
    told = capsys.readouterr().out
    assert told.startswith(f"note: annotations: {count} " if reason else "")
    # Reported once, however often the file is read.
    assert told.count("note:") == bool(reason)


def test_ids_that_are_kept_stay():
    data = content()
    data["annotations"][1]["id"] = data["annotations"][0]["id"]
    data["annotations"][3]["id"] = 0
    assert [a["id"] for a in load_ground_truth(data).data["annotations"]] == [1, 4, 3, 5]


@pytest.mark.parametrize("size", [{"width": 0, "height": 0}, {"width": None, "height": None}, {"width": 128}, {}])
def test_sizes_that_are_none_count_as_not_told(size):
    data = content()
    data["images"][1] = {"id": 2, "file_name": "2.jpg", **size}
    truth = load_ground_truth(data)
    assert truth.image_sizes == {1: (128, 96)}
    assert not {"width", "height"} & truth.data["images"][1].keys()
    assert truth.report.counts["unusable_sizes"] == (len(size) == 2)
    data["images"][1].update(width="128", height=96.0)
    assert load_ground_truth(data).image_sizes[2] == (128, 96)


class TestRoboflow:
    def data(self, name):
        data = content()
        data["categories"] = [
            {"id": 0, "name": name, "supercategory": "none"},
            *({**c, "supercategory": name} for c in data["categories"]),
        ]
        return data

    @pytest.mark.parametrize("name", ["animals", "cat"])
    def test_the_category_of_the_project_is_left_out(self, name, capsys):
        truth = load_ground_truth(self.data(name))
        assert truth.categories == {1: "cat", 2: "dog"}
        assert f"the category '{name}' (id 0) has no box" in capsys.readouterr().out

    def test_one_with_boxes_is_a_class(self):
        data = self.data("animals")
        data["annotations"][0]["category_id"] = 0
        assert 0 in load_ground_truth(data).categories
        data = self.data("cat")
        data["annotations"][0]["category_id"] = 0
        with pytest.raises(UserError, match="repeats category names"):
            load_ground_truth(data)

    def test_supercategories_of_others_are_no_projects(self):
        data = content()
        data["categories"].append({"id": 3, "name": "bus", "supercategory": "none"})
        assert len(load_ground_truth(data).categories) == 3


def test_lvis_lacks_iscrowd_by_its_format(capsys):
    data = content()
    data["categories"] = [{**c, "frequency": "f"} for c in data["categories"]]
    for a in data["annotations"]:
        del a["iscrowd"]
    assert all(a["iscrowd"] == 0 for a in load_ground_truth(data).data["annotations"])
    assert capsys.readouterr().out == ""


def test_files_without_annotations_are_for_predictions():
    data = content()
    del data["annotations"]
    with pytest.raises(UserError, match=r"lacks annotations.*tools/test.py CONFIG CHECKPOINT --out"):
        load_ground_truth(data)
    truth = load_ground_truth(data, need_annotations=False)
    assert (truth.annotated, truth.data["annotations"]) == (False, [])
    with pytest.raises(UserError, match="lacks images, annotations"):
        load_ground_truth({"categories": []}, need_annotations=False)


def corners(data):
    for a in data["annotations"]:
        x, y, w, h = a["bbox"]
        a["bbox"] = [x, y, x + w, y + h]
    return data


def test_corners_are_told_of_annotations_and_of_predictions(capsys):
    data = content()
    truth = load_ground_truth(data)
    check_predictions(perfect(data), truth)
    assert capsys.readouterr().out == ""
    check_predictions(perfect(corners(content())), truth)
    assert "2 of 4 predicted boxes leave their image: are they x1, y1, x2, y2?" in capsys.readouterr().out
    load_ground_truth(corners(data))
    assert "2 annotated boxes leave their image: are they x1, y1, x2, y2?" in capsys.readouterr().out


def renamed(data, images=str, categories=lambda c: c):
    return {
        "images": [{**i, "id": images(i["id"])} for i in data["images"]],
        "annotations": [
            {**a, "image_id": images(a["image_id"]), "category_id": categories(a["category_id"])}
            for a in data["annotations"]
        ],
        "categories": [{**c, "id": categories(c["id"])} for c in data["categories"]],
    }


#: Replacements for image ids and category ids 1 and 2.
FORMS = [
    (str, lambda c: c),
    (lambda i: f"{i:012d}", lambda c: c),
    (lambda i: i, lambda c: f"c{c}"),
    (lambda i: ["7", "07"][i - 1], lambda c: ["1", "01"][c - 1]),
    (lambda i: [7, "7"][i - 1], lambda c: [1, "1"][c - 1]),
    (lambda i: 2**53 + i, lambda c: 2**62 + c),
    (lambda i: 2**70 + i, lambda c: -c),
]


class TestIds:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_any_id_scores_as_small_numbers_do(self, form, backend, tmp_path):
        plain = content(images=2)
        wrong = [{**r, "bbox": [0, 0, 5, 5]} if n == 2 else r for n, r in enumerate(perfect(plain))]
        expected = score(plain, backend, wrong)
        assert 0 < expected < 1
        data = renamed(plain, *form)
        results = [{**r, "image_id": form[0](r["image_id"]), "category_id": form[1](r["category_id"])} for r in wrong]
        assert score(data, backend, results) == expected
        truth = load_ground_truth(data)
        (tmp_path / "p.json").write_text(json.dumps(results))
        checked, counts = check_predictions(read_predictions(tmp_path / "p.json", truth), truth)
        assert list(checked) == results
        assert counts["unknown_category"] == 0

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_lvis_too(self, form, backend):
        def lvis(data):
            data["categories"] = [{**c, "frequency": "f"} for c in data["categories"]]
            for i in data["images"]:
                i.update(neg_category_ids=[], not_exhaustive_category_ids=[])
            data["images"][0]["not_exhaustive_category_ids"] = [data["categories"][0]["id"]]
            return load_ground_truth(data)

        plain, named = lvis(content()), lvis(renamed(content(), *form))
        extra = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.99}
        results = [*perfect(plain.data), extra]
        renamed_results = [
            {**r, "image_id": form[0](r["image_id"]), "category_id": form[1](r["category_id"])} for r in results
        ]
        expected, _ = evaluate_lvis(plain, check_predictions(results, plain)[0], backend=backend)
        found, _ = evaluate_lvis(named, check_predictions(renamed_results, named)[0], backend=backend)
        assert found == expected
        assert found["bbox_AP"] == pytest.approx(1.0)

    @pytest.mark.parametrize("form", FORMS)
    def test_columns_keep_them(self, form, tmp_path):
        truth = load_ground_truth(renamed(content(), *form))
        images = [form[0](1), form[0](2), form[0](1)]
        boxes = np.array([[0.0, 0, 5, 5]] * 3)
        write_columnar(
            tmp_path / "p.safetensors", images, boxes, np.ones(3), np.array([0, 1, 2]), ["cat", "dog", "x"], {}
        )
        read = read_predictions(tmp_path / "p.safetensors", truth)
        assert [r["image_id"] for r in read] == images
        assert [r["category_id"] for r in read][:2] == [form[1](1), form[1](2)]
        assert check_predictions(read, truth)[1]["unknown_category"] == 1

    def test_parts_of_other_kinds_are_joined_without_mixing_them(self):
        parts = [
            DetectionColumns.from_results([{"image_id": i, "category_id": c, "bbox": [0, 0, 1, 1], "score": 0.5}])
            for i, c in ((1, 1), ("1", "1"), (1, "01"))
        ]
        joined = DetectionColumns.cat(parts)
        assert [(r["image_id"], r["category_id"]) for r in joined] == [(1, 1), ("1", "1"), (1, "01")]

    def test_small_numbers_are_not_copied(self):
        truth = load_ground_truth(content())
        checked, _ = check_predictions(perfect(truth.data), truth)
        assert with_numbers(truth, checked) == (truth, checked)
        assert with_numbers(truth, checked)[0] is truth


class TestPredictions:
    def test_text_for_a_number_is_refused(self):
        truth = load_ground_truth(content())
        for key, said in (("category_id", "lists 1"), ("image_id", "lists 1")):
            with pytest.raises(UserError, match=said):
                check_predictions([{**perfect(truth.data)[0], key: "1"}], truth)
        texts = load_ground_truth(renamed(content(), str, str))
        with pytest.raises(UserError, match="lists '1'"):
            check_predictions([{**perfect(texts.data)[0], "category_id": 1}], texts)

    def test_decimal_ids_are_whole_numbers(self):
        truth = load_ground_truth(content())
        results = [
            {**r, "image_id": float(r["image_id"]), "category_id": float(r["category_id"])} for r in perfect(truth.data)
        ]
        assert list(check_predictions(results, truth)[0]) == perfect(truth.data)
        with pytest.raises(UserError, match="must be an integer or a string"):
            check_predictions([{**results[0], "image_id": 1.5}], truth)

    @pytest.mark.parametrize(("start", "hint"), [(0, "0..79"), (1, "1..80")])
    def test_labels_for_ids_are_hinted_at(self, start, hint, capsys):
        data = content()
        ids = [i for i in range(1, 91) if i % 9]
        data["categories"] = [{"id": i, "name": f"n{i}"} for i in ids]
        truth = load_ground_truth(data)
        results = [{**perfect(data)[0], "category_id": k + start} for k in range(80)]
        counts = check_predictions(results, truth)[1]
        assert counts["unknown_category"] == len(set(range(start, 80 + start)) - set(ids))
        told = capsys.readouterr().out
        assert f"all ids are in {hint}, like the labels of a network" in told
        assert "80 classes 1..89" in told

    def test_own_ids_and_foreign_ones_get_no_hint(self, capsys):
        truth = load_ground_truth(content())
        check_predictions([{**perfect(truth.data)[0], "category_id": 77}, *perfect(truth.data)], truth)
        assert "labels" not in capsys.readouterr().out

    @pytest.mark.parametrize("iou_type", ["bbox", "segm"])
    def test_images_that_are_not_asked_for_are_left_out_and_foreign_ones_refused(self, iou_type):
        data = content(images=3)
        data["annotations"] = data["annotations"][:4]
        truth = annotated_only(load_ground_truth(data))
        mask = {"segmentation": {"size": [96, 128], "counts": [96 * 128 - 5, 5]}}
        results = [{**r, **mask} for r in perfect(content(images=3))]
        checked, counts = check_predictions(results, truth, iou_type)
        assert (len(checked), counts["left_out_images"], counts["predictions"]) == (4, 2, 6)
        with pytest.raises(UserError, match="no image 4"):
            check_predictions([*results, {**results[0], "image_id": 4}], truth, iou_type)

    @pytest.mark.parametrize("box", [[5, 5, 3, 9], [5, 5, 9, 3], [0, 0, float("nan"), 1]])
    def test_corners_out_of_order_are_neither_written_nor_read(self, box, tmp_path):
        truth = load_ground_truth(content())
        good = np.array([[0.0, 0, 5, 5]])
        with pytest.raises(UserError, match="box 1 is"):
            write_columnar(
                tmp_path / "p.safetensors",
                [1, 1],
                np.array([good[0], box], dtype=np.float32),
                np.ones(2),
                np.zeros(2),
                ["cat"],
                {},
            )
        assert not (tmp_path / "p.safetensors").exists()
        row = {"image_id": 1, "boxes": [box], "scores": [0.5], "names": ["cat"]}
        (tmp_path / "p.jsonl").write_text(json.dumps(row))
        with pytest.raises(UserError, match=r"box 0 is|NaN"):
            read_predictions(tmp_path / "p.jsonl", truth)


@given(st.lists(st.sampled_from([0, 1, 1, 2, 3, None, "5", 2.0]), min_size=1, max_size=8), st.integers(1, 4))
def test_ids_differ_and_pieces_change_nothing(ids, piece):
    """For any invalid ids and any chunking of a file, ids become valid and entries keep their order."""
    entries = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [n, 0, 1, 1], "area": 1, "iscrowd": 0}
        for n, i in enumerate(ids)
    ]
    check = AnnotationCheck("x")
    check.categories([{"id": 1, "name": "cat"}])
    check.images([{"id": 1, "width": 50, "height": 50}])
    out = [a for k in range(0, len(entries), piece) for a in check.annotations(entries[k : k + piece])]
    check.finish()
    assert [a["bbox"] for a in out] == [a["bbox"] for a in entries]
    assert len({a["id"] for a in out}) == len(out)
    assert all(type(a["id"]) is int and a["id"] > 0 for a in out)
    assert [a["id"] for a in entries] == ids


def test_lines_of_a_run_that_died_are_read_up_to_the_cut(tmp_path):
    truth = load_ground_truth(content())
    row = {"image_id": 1, "boxes": [[0, 0, 5, 5]], "scores": [0.5], "names": ["cat"]}
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row)[:-9])
    assert len(read_predictions(path, truth)) == 1
    for wrong, said in (
        ({"scores": []}, "lists of equal length"),
        ({"scores": ["0.5"]}, "and scores numbers"),
        ({"boxes": [[0, 0, 5]]}, "four finite numbers"),
    ):
        path.write_text(json.dumps({**row, **wrong}))
        with pytest.raises(UserError, match=f"line 1: .*{said}"):
            read_predictions(path, truth)

"""Target-only, fixed AP, interrupted runs, and columnar results."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.structures import InstanceData

from smartclip_det.core.errors import UserError
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.columns import DetectionColumns
from smartclip_det.formats.predictions import check_predictions
from smartclip_det.metrics.lvis import evaluate_lvis, limit_per_class
from smartclip_det.protocols.detection_metric import OpenVocabMetric
from smartclip_det.protocols.registry import evaluate
from tests.protocols.test_rules import perfect, small_truth

scores = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.5]), max_size=30)


def rows_of(values, images=3, classes=4):
    return [
        {"image_id": i % images, "category_id": i % classes, "bbox": [i, 0, 1, 1], "score": s}
        for i, s in enumerate(values)
    ]


@given(scores, st.integers(0, 5))
def test_best_of_each_is_a_stable_sort_cut_short(values, limit):
    rows = rows_of(values)
    columns = DetectionColumns.from_results(rows)
    assert list(columns) == rows
    kept = columns.best_of_each(columns.images, limit)
    for image in range(3):
        by_hand = sorted((r for r in rows if r["image_id"] == image), key=lambda r: -r["score"])[:limit]
        assert [r for r in kept if r["image_id"] == image] == by_hand


@given(scores)
def test_columns_are_a_sequence(values):
    rows = rows_of(values)
    columns = DetectionColumns.from_results(rows)
    assert len(columns) == len(rows)
    assert [columns[i] for i in range(len(rows))] == rows
    assert list(columns[1:5]) == rows[1:5]


def lvis_truth():
    images = [
        {"id": i, "width": 100, "height": 100, "neg_category_ids": [], "not_exhaustive_category_ids": []}
        for i in (1, 2)
    ]
    boxes = [
        {"id": 10 + i, "image_id": i, "category_id": 1, "bbox": [0, 0, 20, 20], "area": 400, "segmentation": []}
        for i in (1, 2)
    ]
    categories = [{"id": k, "name": n, "frequency": f} for k, n, f in ((1, "cat", "r"), (2, "dog", "f"))]
    return load_ground_truth({"images": images, "annotations": boxes, "categories": categories})


def test_fixed_ap_counts_what_the_limit_per_image_cuts():
    """The true cat ranks below two dogs: two detections per image drop it, the top two of each class do not."""
    truth = lvis_truth()
    dogs = [{"image_id": i, "category_id": 2, "bbox": [50 + j, 50, 9, 9], "score": 0.9} for i in (1, 2) for j in (0, 1)]
    results = [*dogs, *perfect(truth, 0.1)]
    limited, _ = evaluate_lvis(truth, results, max_dets=2)
    assert limited["bbox_APr"] == 0
    for backend in ("fast", "reference"):
        fixed, _ = evaluate_lvis(truth, results, max_dets=-1, fixed=True, backend=backend)
        assert fixed["bbox_APr"] == pytest.approx(1.0)
    kept = limit_per_class(results, 1)
    assert [(r["image_id"], r["category_id"]) for r in kept] == [(1, 1), (1, 2)]
    with pytest.raises(UserError, match="no limit per image"):
        evaluate_lvis(truth, results, max_dets=300, fixed=True)


def ov_files(tmp_path, results):
    truth = small_truth(("person", "dog", "bus"))
    (tmp_path / "ann.json").write_text(json.dumps(truth.data))
    (tmp_path / "split.json").write_text(json.dumps({"base": ["person", "dog"], "novel": ["bus"]}))
    (tmp_path / "pred.json").write_text(json.dumps(results(truth)))
    return {"ann": tmp_path / "ann.json", "pred": tmp_path / "pred.json", "split_file": tmp_path / "split.json"}


def test_target_only_is_scored_over_the_novel_names_and_refuses_a_joint_run(tmp_path):
    files = ov_files(tmp_path, lambda t: [r for r in perfect(t) if r["category_id"] == 8])
    result = evaluate("ov-coco", **files, setting="target-only")
    assert result.metrics == {"target_only_novel_ap50": pytest.approx(1.0)}
    assert set(result.per_class) == {"bus"}
    assert result.protocol["setting"] == "target-only"
    assert result.protocol["vocabulary"] == 1
    files = ov_files(tmp_path, perfect)
    with pytest.raises(UserError, match="contain base classes"):
        evaluate("ov-coco", **files, setting="target-only")


def sample(image_id, boxes, names_at):
    found = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.full((len(boxes),), 0.75),
        labels=torch.tensor(names_at, dtype=torch.int64),
    )
    return {"img_id": image_id, "pred_instances": found}


def test_a_run_that_died_is_scored_from_what_it_saved(tmp_path):
    truth = small_truth(per_image=1, images=3)
    (tmp_path / "ann.json").write_text(json.dumps(truth.data))
    metric = OpenVocabMetric(str(tmp_path / "ann.json"), out_file=str(tmp_path / "out.json"))
    metric.dataset_meta = {"classes": ("bus", "cat", "dog")}
    # Image 1 has a cat and image 2 a dog, both at x 10, y 10, 30 wide and high; image 3 was not reached.
    metric.process(None, [sample(1, [[10, 10, 40, 40]], [1])])
    metric.process(None, [sample(2, [[10, 10, 40, 40]], [0])])
    partial = metric.partial_file
    with partial.open("a") as handle:
        handle.write('{"image_id": 3, "boxes": [[1')  # the disk was full here
    result = evaluate("coco", tmp_path / "ann.json", partial, images="predicted")
    assert result.counts["predictions"] == 2
    assert result.per_class["cat"] == pytest.approx(1.0)
    assert result.per_class["dog"] == 0
    assert result.per_class["bus"] in (None, -1)
    assert result.protocol["images"] == "predicted"
    # A finished run leaves only the complete file.
    metrics = metric.evaluate(2)
    assert not partial.exists()
    whole = evaluate("coco", ann=tmp_path / "ann.json", pred=tmp_path / "out.json")
    assert whole.metrics["bbox_mAP"] == metrics["bbox_mAP"]
    with pytest.raises(UserError, match="unfinished run"):
        evaluate("coco", ann=tmp_path / "ann.json", pred=tmp_path / "out.json", images="predicted")
    partial.write_text('{"image_id": 3}\n{"image_id": 4}\n')
    with pytest.raises(UserError, match="line 1 lacks"):
        evaluate("coco", tmp_path / "ann.json", partial, images="predicted")


def test_a_second_test_of_one_run_starts_the_partial_file_anew(tmp_path):
    (tmp_path / "ann.json").write_text(json.dumps(small_truth(per_image=1, images=3).data))
    metric = OpenVocabMetric(str(tmp_path / "ann.json"), out_file=str(tmp_path / "out.safetensors"))
    metric.dataset_meta = {"classes": ("bus", "cat", "dog")}
    metric.partial_file.write_text("left over\n")
    metric.process(None, [sample(1, [], [])])
    assert [json.loads(x)["image_id"] for x in metric.partial_file.read_text().splitlines()] == [1]
    metric.evaluate(1)
    metric.process(None, [sample(2, [[0, 0, 5, 5]], [2])])
    lines = [json.loads(x) for x in metric.partial_file.read_text().splitlines()]
    assert lines == [{"image_id": 2, "boxes": [[0, 0, 5, 5]], "scores": [0.75], "names": ["dog"]}]


def test_columns_and_lists_are_checked_alike():
    truth = small_truth()
    rows = [*perfect(truth), {"image_id": 1, "category_id": 77, "bbox": [-5, 0, 3, 3], "score": 0.5}]
    plain, counts = check_predictions(rows, truth)
    held, same = check_predictions(DetectionColumns.from_results(rows), truth)
    assert list(plain) == list(held) == rows
    assert counts == same == {"predictions": len(rows), "unknown_category": 1, "outside_image": 1}
    bad = DetectionColumns.from_results(
        [*rows, {"image_id": 1, "category_id": 8, "bbox": [0, 0, np.nan, 3], "score": 0.5}]
    )
    with pytest.raises(UserError, match=f"Prediction {len(rows)} "):
        check_predictions(bad, truth)


def test_groups_in_several_processes_give_the_digits_of_one(shared, monkeypatch):
    from smartclip_det.formats.predictions import read_predictions
    from smartclip_det.metrics import lvis

    truth = load_ground_truth(shared / "lvis_val100/lvis_val_100.json")
    results, _ = check_predictions(read_predictions(shared / "lvis_val100/peer_results_A.json", truth), truth)
    alone, classes = evaluate_lvis(truth, results)
    monkeypatch.setattr(lvis, "GROUP_DETECTIONS", max(2, len(results) // 5))
    monkeypatch.setattr(lvis, "GROUP_PAIRS", 20_000)
    monkeypatch.setattr(lvis, "PROCESSES_FROM", 1)
    calls = []
    spread = lvis.map_in_processes

    def watched(work, items, workers, items_each):
        calls.append((len(items), workers, items_each))
        return spread(work, items, 2, items_each)

    monkeypatch.setattr(lvis, "map_in_processes", watched)
    together, same = evaluate_lvis(truth, results)
    assert calls[0][0] > 5
    assert calls[0][1:] == (None, 1)
    assert together == alone
    assert same == classes


@pytest.mark.parametrize("setting", ["intra", "inter"])
def test_a_run_on_sentences_has_the_digits_of_its_file(tmp_path, setting):
    """D-cube: a detector whose vocabulary is the sentences."""
    image = {"file_name": "a.jpg", "width": 20, "height": 20}
    names = {5: "a dog without a lead", 6: "a dog", 7: "two red cups on a table"}
    data = {
        "images": [{"id": 1, "sent_ids": [5, 6], **image}, {"id": 2, "sent_ids": [6, 7], **image}],
        "categories": [{"id": k, "name": v, "is_negative": k == 5} for k, v in names.items()],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": [1, 1, 8, 8], "area": 64, "iscrowd": 0}
            for n, (i, c) in enumerate([(1, 6), (2, 6), (2, 7)], 1)
        ],
    }
    (tmp_path / "d3.json").write_text(json.dumps(data))
    metric = OpenVocabMetric(
        str(tmp_path / "d3.json"), protocol="dcube", scenario=setting, out_file=str(tmp_path / "out.json")
    )
    metric.dataset_meta = {"classes": tuple(names.values())}
    boxes = torch.tensor([[1.0, 1, 9, 9], [1.0, 1, 9, 9], [10.0, 10, 12, 12]])
    for image_id in (1, 2):
        found = {"bboxes": boxes, "scores": torch.tensor([0.5, 0.9, 0.2]), "labels": torch.tensor([1, 2, 0])}
        metric.process({}, [{"img_id": image_id, "pred_instances": found}])
    metrics = metric.compute_metrics(metric.results)
    again = evaluate("dcube", tmp_path / "d3.json", tmp_path / "out.json", scenario=setting).metrics
    assert metrics == again
    # On image 1 "two red cups" is a false positive that the intra scenario does not score.
    assert (metrics["full"] == 1.0) == (setting == "intra")
    with pytest.raises(
        UserError, match="dcube has no option setting. It is an option of ov-coco. dcube takes: .*scenario"
    ):
        OpenVocabMetric(str(tmp_path / "d3.json"), protocol="dcube", setting="joint")
    with pytest.raises(UserError, match="scenario='both'"):
        OpenVocabMetric(str(tmp_path / "d3.json"), protocol="dcube", scenario="both")

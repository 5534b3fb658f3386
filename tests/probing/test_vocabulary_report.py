"""Episodes and false positives, by hand and on real detections."""

from __future__ import annotations

import json

import numpy as np
import pytest

from smartclip_det.core.errors import UserError
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.columns import DetectionColumns
from smartclip_det.formats.predictions import read_predictions
from smartclip_det.metrics.coco import evaluate_tables
from smartclip_det.probing.vocabulary_report import sample_episodes, true_positives, vocabulary_report
from tests.processes import run_process
from tests.protocols.test_rules import perfect, small_truth


def test_by_hand():
    """Two images with a cat each, three names. Image 1: a hit, a duplicate, an absent dog; image 2: an absent bus."""
    images = [{"id": i, "width": 100, "height": 100} for i in (1, 2)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0} for i in (1, 2)
    ]
    names = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "bus"}]
    truth = load_ground_truth({"images": images, "annotations": boxes, "categories": names})
    found = [
        {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.9},
        {"image_id": 1, "category_id": 1, "bbox": [11, 10, 20, 20], "score": 0.6},
        {"image_id": 1, "category_id": 2, "bbox": [50, 50, 20, 20], "score": 0.4},
        {"image_id": 2, "category_id": 3, "bbox": [50, 50, 20, 20], "score": 0.2},
    ]
    report = vocabulary_report(truth, found, 3, [0.1, 0.3, 0.95])
    assert report["vocabulary"] == 3
    low, middle, high = (report["thresholds"][t] for t in ("0.1", "0.3", "0.95"))
    assert low == {
        "false_positives": {"on_absent": 1.0, "on_present": 0.5},
        "share_on_absent": 2 / 3,
        "absent_fired": 2 / 4,
    }
    assert middle["false_positives"] == {"on_absent": 0.5, "on_present": 0.5}
    assert middle["absent_fired"] == 1 / 4
    assert high["share_on_absent"] == -1
    alone = vocabulary_report(truth, found, 1, [0.1])
    assert alone["vocabulary"] == 1
    assert alone["thresholds"]["0.1"]["false_positives"]["on_absent"] == 0
    assert alone["thresholds"]["0.1"]["absent_fired"] == -1


def test_crowd_regions_are_no_false_positives():
    truth = small_truth(per_image=1, images=1)
    truth.data["annotations"][0].update(iscrowd=1, bbox=[0, 0, 100, 100])
    found = DetectionColumns.from_results(
        [{"image_id": 1, "category_id": 10, "bbox": [5 * k, 5, 10, 10], "score": 0.5} for k in range(3)]
    )
    assert true_positives(found, np.ones(3, dtype=bool), truth.data["annotations"]).all()


def test_the_whole_vocabulary_is_the_plain_protocol(shared):
    folder = shared / "coco_eval_fake100"
    ann = next(p for p in sorted(folder.glob("*.json")) if "instances" in p.name or "gt" in p.name)
    pred = next(p for p in sorted(folder.glob("*.json")) if "fake" in p.name or "pred" in p.name or "det" in p.name)
    truth = load_ground_truth(ann)
    results = read_predictions(pred, truth)
    every = len(truth.categories)
    assert vocabulary_report(truth, results, every, [0.5])["ap50"] == evaluate_tables(truth, results).ap(0.5)
    small, large = (vocabulary_report(truth, results, n, [0.05])["thresholds"]["0.05"] for n in (10, every))
    assert small["false_positives"]["on_absent"] <= large["false_positives"]["on_absent"]
    assert small["false_positives"]["on_present"] == pytest.approx(large["false_positives"]["on_present"], abs=0.3)


def test_episodes_do_not_depend_on_the_order_of_the_file_and_lvis_knows_its_negatives(shared):
    truth = load_ground_truth(shared / "lvis_val100/lvis_val_100.json")
    first = sample_episodes(truth, 10, seed=3)
    turned = load_ground_truth({**truth.data, "images": truth.data["images"][::-1]})
    assert sample_episodes(turned, 10, seed=3).absent == first.absent
    assert sample_episodes(truth, 10, seed=4).absent != first.absent
    for image in truth.data["images"]:
        assert first.absent[image["id"]] <= set(image["neg_category_ids"])
        assert not first.absent[image["id"]] & first.present[image["id"]]
    lacking = [i for i in first.present if len(first.present[i]) + len(first.absent[i]) < 10]
    assert first.short == len(lacking)
    with pytest.raises(UserError, match="at least one name"):
        sample_episodes(truth, 0)


def test_the_tool_says_whether_filtering_is_exact(tmp_path):
    truth = small_truth()
    (tmp_path / "ann.json").write_text(json.dumps(truth.data))
    (tmp_path / "pred.json").write_text(json.dumps(perfect(truth)))
    (tmp_path / "pred.metrics.json").write_text(json.dumps({"protocol": {"policy": {"activation": "softmax"}}}))
    done = run_process(
        "tools/analysis/vocabulary_report.py",
        "--ann",
        tmp_path / "ann.json",
        "--pred",
        tmp_path / "pred.json",
        "--sizes",
        "2",
    )
    assert done.returncode == 0, done.stderr
    assert "exact for sigmoid only" in done.stdout
    written = json.loads((tmp_path / "pred.vocabulary.json").read_text())
    assert written["protocol"]["exact"] is False
    assert written["metrics"]["2"]["ap50"] == pytest.approx(1.0)

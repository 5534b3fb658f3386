"""Both backends, and lvis-api alone, on generated files: ties, crowds, empty and thin boxes, boxes and masks."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.predictions import check_predictions
from smartclip_det.formats.segmentations import encode_mask
from smartclip_det.metrics.coco import coco_metrics, evaluate_tables
from smartclip_det.metrics.lvis import evaluate_lvis
from smartclip_det.utils.compat import allow_numpy_float

SIDE = 24
#: Widths and heights: empty, nearly empty, thin, ordinary.
LENGTHS = st.sampled_from([0, 0, 1e-12, 1, 2, 5, 8, 12])
BOXES = st.tuples(st.integers(0, 12), st.integers(0, 12), LENGTHS, LENGTHS)
#: Few distinct scores, so that most are tied.
SCORES = st.sampled_from([0.1, 0.5, 0.5, 0.9])
IMAGES, CLASSES = 3, 3
PLACES = st.tuples(st.integers(1, IMAGES), st.integers(1, CLASSES))


def mask_of(box):
    x, y, w, h = (int(v) for v in box)
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[y : y + h, x : x + w] = 1
    return encode_mask(mask)


@st.composite
def files(draw, lvis):
    """Annotations and detections of a few small images; half of the detections are on objects."""
    masks = draw(st.booleans())
    annotations, results = [], []
    for n in range(draw(st.integers(0, 8))):
        image, category = draw(PLACES)
        box = list(draw(BOXES))
        area = draw(st.sampled_from([box[2] * box[3], box[2] * box[3], 0, 0.5, 3e3, 2e4]))
        entry = {
            "id": n + 1,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": area,
            "segmentation": mask_of(box),
            "iscrowd": draw(st.sampled_from([0, 0, 1])),
        }
        if draw(st.booleans()):
            entry["ignore"] = draw(st.integers(0, 1))
        annotations.append(entry)
    for _ in range(draw(st.integers(0, 12))):
        image, category = draw(PLACES)
        box = list(draw(BOXES))
        if annotations and draw(st.booleans()):
            on = draw(st.sampled_from(annotations))
            image, category = on["image_id"], on["category_id"]
            box = [on["bbox"][0] + draw(st.integers(0, 1)), *on["bbox"][1:]]
        shape = {"segmentation": mask_of(box)} if masks else {"bbox": box}
        results.append({"image_id": image, "category_id": category, "score": draw(SCORES), **shape})
    some = st.lists(st.integers(1, CLASSES), unique=True)
    images = [{"id": i + 1, "width": SIDE, "height": SIDE} for i in range(IMAGES)]
    categories = [{"id": k + 1, "name": f"class {k}"} for k in range(CLASSES)]
    if lvis:
        images = [{**i, "neg_category_ids": draw(some), "not_exhaustive_category_ids": draw(some)} for i in images]
        categories = [{**c, "frequency": "rcf"[n]} for n, c in enumerate(categories)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    return data, results, "segm" if masks else "bbox"


def lvis_api(data, results, iou_type, max_dets):
    """Result of lvis-api itself on the two lists."""
    allow_numpy_float()
    from lvis import LVIS, LVISEval, LVISResults

    logging.getLogger("lvis").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = LVIS.__new__(LVIS)
        truth.logger, truth.dataset = logging.getLogger("lvis"), json.loads(json.dumps(data))
        truth._create_index()
        evaluator = LVISEval(truth, LVISResults(truth, json.loads(json.dumps(results)), max_dets), iou_type)
        evaluator.run()
    return evaluator.results


def fixed_choice(results, limit):
    """The top detections of each class over all images, as the fixed protocol defines them."""
    kept = []
    for category in range(1, CLASSES + 1):
        mine = [r for r in results if r["category_id"] == category]
        kept += sorted(mine, key=lambda r: -r["score"])[:limit]
    return kept


@settings(max_examples=60, deadline=None)
@given(files(lvis=True), st.sampled_from([2, 300, -1]))
def test_lvis_equals_lvis_api(content, max_dets):
    data, results, iou_type = content
    truth = load_ground_truth(copy.deepcopy(data))
    found, _ = check_predictions(results, truth, iou_type)
    for backend in ("fast", "reference"):
        metrics, _ = evaluate_lvis(truth, found, backend=backend, iou_type=iou_type, max_dets=max_dets)
        # lvis-api fails on an empty list.
        if results:
            expected = lvis_api(truth.data, results, iou_type, max_dets)
            for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"):
                assert metrics[f"{iou_type}_{name}"] == pytest.approx(expected[name], abs=1e-9), (backend, name)
            assert metrics[f"{iou_type}_AR@{max_dets}"] == pytest.approx(expected["AR@300"], abs=1e-9), backend


@settings(max_examples=30, deadline=None)
@given(files(lvis=True), st.integers(1, 4))
def test_fixed_ap_equals_lvis_api_on_the_best_of_each_class(content, limit):
    from smartclip_det.metrics import lvis

    data, results, iou_type = content
    if iou_type == "segm" or not results:
        return
    truth = load_ground_truth(copy.deepcopy(data))
    found, _ = check_predictions(results, truth)
    kept = lvis.limit_per_class(found, limit)
    metrics, _ = evaluate_lvis(truth, kept, max_dets=-1, fixed=True)
    expected = lvis_api(truth.data, fixed_choice(results, limit), "bbox", -1)
    for name in ("AP", "AP50", "APs", "APr", "APc", "APf"):
        assert metrics[f"bbox_{name}"] == pytest.approx(expected[name], abs=1e-9), name


@settings(max_examples=60, deadline=None)
@given(files(lvis=False), st.sampled_from([2, 100]))
def test_coco_backends_agree(content, limit):
    data, results, iou_type = content
    truth = load_ground_truth(copy.deepcopy(data))
    found, _ = check_predictions(results, truth, iou_type)
    fast, reference = (
        coco_metrics(evaluate_tables(truth, found, backend=b, iou_type=iou_type, max_dets=[1, limit]), iou_type)
        for b in ("fast", "reference")
    )
    assert fast == pytest.approx(reference, abs=1e-9)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_what_has_no_area_counts_on_neither_side(iou_type):
    """An empty box with the top score halves AP where it counts; so does an object without area."""
    real, empty = [2, 2, 10, 10], [14, 14, 0, 8]
    data = {
        "images": [{"id": 1, "width": SIDE, "height": SIDE, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
        "categories": [{"id": 1, "name": "a", "frequency": "f"}],
        "annotations": [
            {"id": n + 1, "image_id": 1, "category_id": 1, "bbox": b, "area": b[2] * b[3], "segmentation": mask_of(b)}
            for n, b in enumerate([real, empty])
        ],
    }
    truth = load_ground_truth(data)
    results = [
        {"image_id": 1, "category_id": 1, "score": s, "bbox": b, "segmentation": mask_of(b)}
        for b, s in ((empty, 0.9), (real, 0.5))
    ]
    for backend in ("fast", "reference"):
        metrics, _ = evaluate_lvis(
            truth, check_predictions(results, truth, iou_type)[0], backend=backend, iou_type=iou_type
        )
        assert metrics[f"{iou_type}_AP"] == pytest.approx(1.0)
        assert metrics[f"{iou_type}_AR@300"] == pytest.approx(1.0)

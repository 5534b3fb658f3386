"""Segmentations of every format: decoded to the same mask, or rejected before C code sees them."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from smartclip_det.core.errors import UserError
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.predictions import check_predictions
from smartclip_det.formats.segmentations import (
    RunLengths,
    counts_of,
    encode_mask,
    mask_areas,
    run_lengths,
    segmentation_problem,
    whole_mask,
)
from smartclip_det.metrics.coco import evaluate_tables
from smartclip_det.metrics.lvis import evaluate_lvis
from smartclip_det.protocols.registry import evaluate

H, W = 12, 20
SQUARE = [[2, 2, 10, 2, 10, 8, 2, 8]]
INF, NAN = float("inf"), float("nan")


def runs_of(mask):
    """Run lengths in column-major order, zeros first, with numpy only."""
    flat = np.r_[0, mask.T.ravel().astype(np.int64), -1]
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(n) for n in np.diff(np.r_[0, edges])]


MASKS = arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@given(MASKS)
def test_the_text_of_run_lengths_is_read_as_its_numbers(mask):
    packed = encode_mask(mask)
    assert counts_of(packed["counts"]).tolist() == runs_of(mask)
    forms = [
        packed,
        dict(packed),
        {**packed, "counts": packed["counts"].encode()},
        {"size": list(mask.shape), "counts": runs_of(mask)},
        {"size": [float(n) for n in mask.shape], "counts": [float(n) for n in runs_of(mask)]},
    ]
    for form in forms:
        assert run_lengths(form, *mask.shape) == packed
        assert (whole_mask([form], mask.shape) == mask).all()
    assert mask_areas([packed]).tolist() == [mask.sum()]


def test_long_runs_take_several_characters():
    mask = np.zeros((3000, 2000), dtype=bool)
    mask[1000:, 1500:] = True
    packed = encode_mask(mask)
    assert counts_of(packed["counts"]).tolist() == runs_of(mask)
    assert run_lengths(dict(packed), 3000, 2000) == packed


@settings(max_examples=300)
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12), st.integers(1, 9), st.integers(1, 9))
def test_garbage_is_refused_or_covers_the_image(text, height, width):
    found = {"size": [height, width], "counts": text}
    if segmentation_problem(found, height, width):
        with pytest.raises(UserError):
            run_lengths(found, height, width)
    else:
        assert counts_of(text).sum() == height * width
        assert whole_mask([found], (height, width)).sum() == counts_of(text)[1::2].sum()


POINTS = st.lists(st.tuples(st.floats(-5, 30), st.floats(-5, 30)), min_size=3, max_size=8)


@given(st.lists(POINTS, min_size=1, max_size=3))
def test_polygons_are_those_of_pycocotools(parts):
    polygons = [[v for point in part for v in point] for part in parts]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, H, W)))
    assert (whole_mask([polygons], (H, W)) == expected).all()


BAD = [
    ([[2, 2, NAN, 2, 10, 8]], "not finite, or far outside"),
    ([[2, 2, 1e308, 2, 10, 8]], "not finite, or far outside"),
    ([[2, 2, -INF, 2, 10, 8]], "not finite, or far outside"),
    ([[2, 2, 10**400, 2, 10, 8]], "not finite, or far outside"),
    ([[2, 2, 1e6, 2, 10, 8]], "far outside the image of 20 x 12"),
    ([2, 2, 10, 2, 10, 8], "a flat list"),
    ([[2, 2, 10, 8]], "polygon 0 has 4 numbers"),
    ([SQUARE[0], [1, 2]], "polygon 1 has 2 numbers"),
    ([[2, 2, 10, 2, 10, 8, 3]], "polygon 0 has 7 numbers"),
    ([SQUARE[0], []], "polygon 1 has 0 numbers"),
    ([[]], "polygon 0 has 0 numbers"),
    ([["2", "2", "10", "2", "10", "8"]], "'2', which is not a number"),
    ([[2, 2, None, 2, 10, 8]], "None, which is not a number"),
    ([[2, 2, True, 2, 10, 8]], "True, which is not a number"),
    ([[[2, 2], [10, 2], [10, 8], [2, 8]]], "which is not a number"),
    ([{"size": [H, W], "counts": [H * W]}], "part 0 of the segmentation"),
    ([], "no segmentation"),
    ({}, "no segmentation"),
    (None, "no segmentation"),
    ("", "no segmentation"),
    ("Pb0", "segmentation is 'Pb0'"),
    (5, "segmentation is 5"),
    ({"size": [H, W]}, "lack counts"),
    ({"counts": [H * W]}, "lack size"),
    ({"size": [W, H], "counts": [H * W]}, "be swapped"),
    ({"size": [6, 5], "counts": [30]}, "are for 5 x 6 pixels .*, but the image has 20 x 12"),
    ({"size": [H, W, 1], "counts": [H * W]}, r"expected \[height, width\]"),
    ({"size": "12x20", "counts": [H * W]}, r"expected \[height, width\]"),
    ({"size": [H, NAN], "counts": [H * W]}, r"expected \[height, width\]"),
    ({"size": [H, W], "counts": []}, "cover 0 pixels"),
    ({"size": [H, W], "counts": [10, 20]}, "cover 30 pixels, but the image has 240"),
    ({"size": [H, W], "counts": [-10, 250]}, "invalid counts"),
    ({"size": [H, W], "counts": [10.5, 229.5]}, "invalid counts"),
    ({"size": [H, W], "counts": [NAN]}, "invalid counts"),
    ({"size": [H, W], "counts": [10**30]}, "invalid counts"),
    ({"size": [H, W], "counts": ["240"]}, "invalid counts"),
    ({"size": [H, W], "counts": ""}, "invalid counts"),
    ({"size": [H, W], "counts": "not run lengths"}, "invalid counts"),
    ({"size": [H, W], "counts": "Größe"}, "invalid counts"),
    ({"size": [H, W], "counts": "o"}, "invalid counts"),
    ({"size": [H, W], "counts": "oooooooooooooo0"}, "invalid counts"),
    ({"size": [H, W], "counts": "oooo0"}, "cover 1048575 pixels"),
    ({"size": [H, W], "counts": {}}, "invalid counts"),
]


@pytest.mark.parametrize(("given", "said"), BAD)
def test_what_has_no_meaning_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        run_lengths(given, H, W)


@pytest.mark.parametrize("size", [(None, 20), (0, 20), (NAN, 20), ("12", 20), (12.5, 20), (True, 20), (10**6, 10**6)])
def test_masks_need_the_size_of_their_image(size):
    with pytest.raises(UserError, match="no valid size"):
        run_lengths(SQUARE, *size)


def test_checked_masks_are_still_compared_with_their_image():
    with pytest.raises(UserError, match="the image has 5 x 5"):
        run_lengths(RunLengths(size=[H, W], counts="anything"), 5, 5)


def detection_files(mask):
    images = [{"id": 7, "width": W, "height": H, "neg_category_ids": [], "not_exhaustive_category_ids": []}]
    annotation = {"id": 3, "image_id": 7, "category_id": 1, "bbox": [2, 2, 8, 6], "area": 48, "segmentation": mask}
    return {"images": images, "annotations": [annotation], "categories": [{"id": 1, "name": "cat", "frequency": "f"}]}


def result(mask):
    return {"image_id": 7, "category_id": 1, "score": 0.9, "segmentation": mask}


@pytest.mark.parametrize("backend", ["fast", "reference"])
def test_every_form_scores_alike_and_bad_ones_are_named(backend):
    packed = run_lengths(SQUARE, H, W)
    forms = [SQUARE, packed, {"size": [H, W], "counts": counts_of(packed["counts"]).tolist()}]
    scorers = [
        lambda t, r: evaluate_tables(t, r, backend=backend, iou_type="segm").ap(),
        lambda t, r: evaluate_lvis(t, r, backend=backend, iou_type="segm")[0]["segm_AP"],
    ]
    for score in scorers:
        for wanted in forms:
            for found in forms:
                truth = load_ground_truth(copy.deepcopy(detection_files(wanted)))
                assert score(truth, check_predictions([result(found)], truth, "segm")[0]) == pytest.approx(1.0)
        for mask, said in ((None, "no segmentation"), ([[2, 2, NAN, 2, 10, 8]], "not finite")):
            truth = load_ground_truth(detection_files(mask))
            checked, _ = check_predictions([result(SQUARE)], truth, "segm")
            with pytest.raises(UserError, match=rf"entry 0 of annotations \(id 3, image 7\): .*{said}"):
                score(truth, checked)
    with pytest.raises(UserError, match=r'Prediction 1 {"image_id": 7.*polygon 0 has 4 numbers'):
        check_predictions([result(SQUARE), result([[2, 2, 8, 6]])], truth, "segm")


def test_boxes_are_scored_whatever_the_masks_are():
    truth = load_ground_truth(detection_files([[NAN] * 6]))
    rows = [{**result([5]), "bbox": [2, 2, 8, 6]}]
    assert evaluate_tables(truth, check_predictions(rows, truth)[0]).ap() == pytest.approx(1.0)


@pytest.mark.parametrize("side", ["targets", "predictions"])
@pytest.mark.parametrize("protocol", ["refseg", "grefseg"])
@pytest.mark.parametrize("bad", [[[2, 2, NAN, 2, 10, 8]], [[2, 2, 1e308, 2, 10, 8]], {"size": [5, 5], "counts": [25]}])
def test_sentences_with_broken_masks_are_named(tmp_path, protocol, side, bad):
    masks = {"targets": SQUARE, "predictions": SQUARE, side: bad}
    row = {
        "id": 9,
        "boxes": [[2, 2, 10, 8]],
        "sentence": "cat",
        "width": W,
        "height": H,
        "file_name": "a.jpg",
        "masks": [masks["targets"]],
    }
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": 9, "segmentation": masks["predictions"]}))
    with pytest.raises(UserError, match="sentence 9: "):
        evaluate(protocol, tmp_path / "t.jsonl", tmp_path / "p.jsonl")

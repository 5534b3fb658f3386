"""Thresholds by class: how they are chosen, cross-validated estimates, and their use in labelling."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smartclip_det.apis.calibration import CalibrateOptions, calibrate, calibration_table
from smartclip_det.apis.detections import Detections
from smartclip_det.core.errors import UserError
from smartclip_det.formats.thresholds import read_thresholds
from smartclip_det.metrics.bootstrap import ClassMatches
from smartclip_det.metrics.thresholds import best_threshold, calibrate_classes, with_interval
from tests.apis.rectangles import COLOURS, Rectangles, scene

NAMES = list(COLOURS)


def f1(scores, hits, total, threshold):
    kept = scores >= threshold
    return 2 * (hits & kept).sum() / (kept.sum() + total)


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 25), st.integers(0, 10_000))
def test_no_other_threshold_is_better(count, seed):
    g = np.random.default_rng(seed)
    scores = np.sort(g.integers(1, 12, count) / 12)[::-1]
    hits = g.random(count) < 0.5
    total = int(hits.sum()) + int(g.integers(0, 3))
    found = best_threshold(scores, hits, total)
    if not hits.any():
        assert found is None
        return
    assert f1(scores, hits, total, found) == pytest.approx(max(f1(scores, hits, total, s) for s in scores))
    wanted = 0.7
    found = best_threshold(scores, hits, total, wanted)
    precise = [s for s in scores if hits[scores >= s].mean() >= wanted]
    assert (found is None) == (not precise)
    if precise:
        assert (scores >= found).sum() == (scores >= min(precise)).sum()


def test_wilson_s_interval():
    # Brown, Cai and DasGupta (2001): 95 % interval of 0 of 10 and 5 of 10.
    assert with_interval(0, 10) == pytest.approx((0, 0, 0.2775), abs=1e-4)
    assert with_interval(5, 10) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)
    assert with_interval(0, 0) is None


def test_what_is_told_is_of_held_out_images():
    """Precision and recall use thresholds chosen without the image that they are applied to."""
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    hits = np.array([[False, True, True, True, True]])
    matches = ClassMatches(
        "cup", np.array([0, 1, 2, 3, 4]), hits, np.ones_like(hits), np.array([0, 1, 1, 1, 1]), scores
    )
    (row,), _ = calibrate_classes([matches], 0.5)
    assert row.threshold == 0.5
    # With image 4 held out, the others choose 0.6, so its box at 0.5 is missed.
    assert (row.hits, row.misses, row.boxes) == (3, 1, 4)


def test_rare_classes_share_a_threshold():
    def matches(name, count):
        right = np.ones((1, count), bool)
        return ClassMatches(
            name, np.arange(count), right, right, np.eye(5)[:count].sum(0), np.linspace(0.9, 0.6, count)
        )

    rows, shared = calibrate_classes([matches("many", 5), matches("two", 2)], 0.5)
    assert [r.own for r in rows] == [True, False]
    assert rows[1].threshold == shared
    text = calibration_table(rows)
    assert "* fewer than 3 boxes" in text
    assert "two" in text


class Doubtful(Rectangles):
    """Also returns false positives: blue objects that do not exist, with lower scores."""

    def detect(self, image, names):
        found = super().detect(image, names)
        ghost = Detections(
            np.array([[0, 0, 5, 5], [1, 1, 7, 7]], np.float32),
            np.array([0.6, 0.3], np.float32),
            np.array([names.index("blue")] * 2),
            names,
        )
        return Detections.join([found, ghost])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    root = tmp_path_factory.mktemp("labelled")
    images, annotations = [], []
    for n in range(12):
        pixels, boxes = scene((90, 70), 5, n)
        Image.fromarray(pixels).save(root / f"{n}.png")
        images.append({"id": n, "file_name": f"{n}.png", "width": 90, "height": 70})
        for (x1, y1, x2, y2), name in boxes:
            x1, y1, x2, y2 = (int(v) for v in (x1, y1, x2, y2))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": n,
                    "category_id": NAMES.index(name) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": k, "name": name} for k, name in enumerate(NAMES, 1)]
    (root / "ann.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root


def test_ghosts_are_cut_off_and_nothing_else(labelled, tmp_path):
    rows = calibrate(CalibrateOptions(labelled / "ann.json", labelled, tmp_path / "t.json"), Doubtful())
    by_name = {r.name: r for r in rows}
    assert 0.6 < by_name["blue"].threshold < 0.95
    assert all(r.precision[0] > 0.9 and r.recall[0] > 0.9 for r in rows)
    assert all(r.precision[1] < r.precision[0] <= r.precision[2] for r in rows)
    chosen = read_thresholds(tmp_path / "t.json")
    assert chosen.by_name == {r.name: r.threshold for r in rows}
    found = Doubtful().detect(np.asarray(Image.open(labelled / "0.png")), tuple(NAMES))
    assert len(found.above(chosen.of(NAMES))) == len(found) - 2
    assert chosen.of([*NAMES, "other"])["other"] == chosen.default
    table = calibration_table(rows)
    assert "on held-out images" in table
    assert "blue" in table


def test_precision_that_is_asked_for(labelled, tmp_path):
    loose = calibrate(
        CalibrateOptions(labelled / "ann.json", labelled, tmp_path / "a.json", least_precision=0.3), Doubtful()
    )
    strict = calibrate(
        CalibrateOptions(labelled / "ann.json", labelled, tmp_path / "b.json", least_precision=0.99), Doubtful()
    )
    assert loose[2].threshold < 0.6 < strict[2].threshold


def test_bad_input(labelled, tmp_path):
    empty = json.loads((labelled / "ann.json").read_text()) | {"annotations": []}
    (tmp_path / "empty.json").write_text(json.dumps(empty))
    for change, said in (
        ({"ann": tmp_path / "empty.json"}, "has no boxes"),
        ({"least_precision": 0}, "above 0"),
        ({"least_precision": 1.5}, "between 0 and 1"),
        ({"images": tmp_path}, "are not in"),
        ({"ann": tmp_path / "none.json"}, "No annotation file"),
    ):
        given_ = {"ann": labelled / "ann.json", "images": labelled, "out": tmp_path / "t.json", **change}
        with pytest.raises(UserError, match=said):
            calibrate(CalibrateOptions(**given_), Rectangles())
    assert not (tmp_path / "t.json").exists()

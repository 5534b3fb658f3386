"""Detections: indexing and slicing, and export to the readers of other tools."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smartclip_det.apis.detections import Detection, Detections
from smartclip_det.core.errors import UserError
from smartclip_det.visualization import colour_of, draw_boxes
from smartclip_det.visualization.draw import contrast_with_white

NAMES = ("red mug", "left dog", "kite")


def some(count=5, image=None, seed=0, names=NAMES, size=(80, 60)):
    g = np.random.default_rng(seed)
    corners = g.uniform(0, 1, (count, 2, 2)) * size
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    scores = np.sort(g.uniform(0.05, 1, count))[::-1]
    return Detections(boxes, scores, g.integers(0, len(names), count), names, image)


def picture(size=(80, 60)):
    return Image.fromarray(np.random.default_rng(7).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


class TestTaking:
    def test_numbers_slices_and_masks(self):
        found = some()
        first = found[0]
        assert isinstance(first, Detection)
        assert first.box == tuple(found.boxes[0])
        assert (first.score, first.name) == (found.scores[0], found.label_names[0])
        assert found[-1] == list(found)[-1]
        assert [d.score for d in found] == found.scores.tolist()
        for which in (
            slice(1, 3),
            found.scores > found.scores[2],
            (found.scores > found.scores[2]).tolist(),
            [3, 0],
            [],
        ):
            taken = found[which]
            index = np.asarray(which, dtype=None if len(which) else int) if not isinstance(which, slice) else which
            assert np.array_equal(taken.scores, found.scores[index])
            assert np.array_equal(taken.boxes, found.boxes[index])
            assert taken.label_names == [found.names[k] for k in found.labels[index]]
            assert taken.names == found.names

    def test_what_is_no_index_is_refused(self):
        found = some(3)
        with pytest.raises(IndexError, match="out of range for 3 detections"):
            found[3]
        with pytest.raises(IndexError, match="up to 7"):
            found[[7]]
        for wrong in ([True, False], "red mug", 1.5, np.zeros((3, 3), bool), None):
            with pytest.raises(UserError, match="an integer, a slice, 3 booleans"):
                found[wrong]

    def test_tracks_and_masks_go_along(self):
        found = some(3)
        found = Detections(
            found.boxes,
            found.scores,
            found.labels,
            NAMES,
            tracks=np.array([4, 5, 6]),
            masks=np.arange(3)[:, None, None] == np.zeros((3, 2, 2)),
        )
        assert found[1].track == 5
        assert found[1:].tracks.tolist() == [5, 6]
        assert found[[2]].masks.shape == (1, 2, 2)
        assert found.to_list()[2]["track"] == 6

    def test_arrays_that_do_not_fit_are_refused(self):
        boxes = np.zeros((2, 4))
        for given_, said in (
            ((boxes, [1], [0, 0], NAMES), "2 boxes need 2 scores; got 1"),
            ((boxes, [1, 1], [0, 3], NAMES), "Labels range from 0 to 3; there are 3"),
            ((np.zeros((2, 5)), [1, 1], [0, 0], NAMES), r"\[N, 4\]"),
            ((boxes, [1, np.nan], [0, 0], NAMES), "finite"),
        ):
            with pytest.raises(UserError, match=said):
                Detections(*given_)
        assert len(Detections([], [], [], NAMES)) == 0

    def test_by_name(self):
        found = some(12)
        assert set(found.of("kite").label_names) == {"kite"}
        assert len(found.of("kite", "red mug")) + len(found.of("left dog")) == 12
        with pytest.raises(UserError, match="'kit' .nearest: kite"):
            found.of("kit")

    @settings(deadline=None, max_examples=40)
    @given(st.integers(0, 30), st.integers(1, 30), st.floats(0, 1))
    def test_above_and_top(self, count, top, threshold):
        found = some(count)
        best = found.top(top)
        assert best.scores.tolist() == sorted(found.scores.tolist(), reverse=True)[:top]
        assert sorted(found.above(threshold).scores.tolist()) == sorted(
            s for s in found.scores.tolist() if s >= threshold
        )

    def test_thresholds_by_name(self):
        found = some(30)
        least = {"red mug": 0.9, "left dog": 0.1, "kite": 1.0, "other": 0.3}
        kept = found.above(least)
        assert all(d.score >= least[d.name] for d in kept)
        assert len(kept) == sum(d.score >= least[d.name] for d in found)
        with pytest.raises(UserError, match=r"no threshold for '\w"):
            found.above({"none": 0.5})

    @settings(deadline=None, max_examples=30)
    @given(st.integers(0, 25), st.integers(0, 1000), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.booleans())
    def test_nms_equals_supervision_s(self, count, seed, iou, across):
        pytest.importorskip("supervision")
        found = some(count, seed=seed)
        theirs = found.to_supervision().with_nms(iou, class_agnostic=across)
        ours = found.nms(iou, across_names=across)
        assert np.allclose(sorted(theirs.confidence), sorted(ours.scores.astype(np.float32)))
        assert (np.diff(ours.scores) <= 0).all()

    def test_join_is_best_first_and_of_one_vocabulary(self):
        joined = Detections.join([some(3), some(4, seed=1)])
        assert len(joined) == 7
        assert (np.diff(joined.scores) <= 0).all()
        with pytest.raises(UserError, match="the same vocabulary"):
            Detections.join([some(), some(names=("a", "b", "c"))])


class TestReadBack:
    def test_supervision(self):
        sv = pytest.importorskip("supervision")
        for count in (0, 4):
            found = some(count)
            theirs = found.to_supervision()
            assert isinstance(theirs, sv.Detections)
            assert np.allclose(theirs.xyxy, found.boxes)
            assert np.allclose(theirs.confidence, found.scores)
            assert list(theirs["class_name"]) == found.label_names
            assert [int(c) for c in theirs.class_id] == found.labels.tolist()
        assert len(theirs[theirs["class_name"] == theirs["class_name"][0]]) >= 1
        sv.BoxAnnotator().annotate(np.asarray(picture()).copy(), theirs)

    def test_pycocotools(self):
        from pycocotools.coco import COCO

        found, ids = some(6), {"red mug": 7, "left dog": 3, "kite": 90, "cup": 1}
        truth = COCO()
        truth.dataset = {
            "images": [{"id": 42, "width": 80, "height": 60}],
            "annotations": [],
            "categories": [{"id": i, "name": n} for n, i in ids.items()],
        }
        truth.createIndex()
        read = truth.loadRes(found.to_coco(42, ids)).anns.values()
        assert [ids[n] for n in found.label_names] == [a["category_id"] for a in read]
        assert np.allclose([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in read)], found.boxes)
        assert {r["category_id"] for r in found.to_coco(1)} <= {1, 2, 3}
        with pytest.raises(UserError, match="categories of the annotation file"):
            found.to_coco(1, {"cup": 1})

    def test_masks_as_run_lengths(self):
        from pycocotools import mask

        found = some(2)
        masks = np.random.default_rng(0).random((2, 60, 80)) > 0.5
        found = Detections(found.boxes, found.scores, found.labels, NAMES, masks=masks)
        for row, one in zip(json.loads(json.dumps(found.to_coco())), masks, strict=True):
            assert np.array_equal(mask.decode(row["segmentation"]), one)

    def test_pandas(self):
        pandas = pytest.importorskip("pandas")
        found = some(5)
        table = found.to_pandas()
        assert isinstance(table, pandas.DataFrame)
        assert table["name"].value_counts().to_dict() == dict(Counter(found.label_names))
        assert np.allclose(table[["x1", "y1", "x2", "y2"]], found.boxes)
        assert some(0).to_pandas().columns.tolist() == table.columns.tolist()

    def test_yolo_by_supervision_and_by_our_reader(self, tmp_path):
        sv = pytest.importorskip("supervision")
        from smartclip_det.formats.yolo import yolo_to_coco

        found = some(6, image=picture())
        (tmp_path / "images").mkdir()
        (tmp_path / "labels").mkdir()
        picture().save(tmp_path / "images/a.jpg")
        (tmp_path / "labels/a.txt").write_text(found.to_yolo())
        (tmp_path / "data.yaml").write_text(json.dumps({"names": list(NAMES)}))
        read = sv.DetectionDataset.from_yolo(
            str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "data.yaml")
        )
        _, _, theirs = next(iter(read))
        assert np.allclose(theirs.xyxy, found.boxes, atol=0.02)
        assert theirs.class_id.tolist() == found.labels.tolist()
        ours = yolo_to_coco(tmp_path / "images", NAMES, tmp_path / "labels").data["annotations"]
        assert [a["category_id"] - 1 for a in ours] == found.labels.tolist()
        lines = found.to_yolo(scores=True).splitlines()
        assert np.allclose([float(li.split()[5]) for li in lines], found.scores, atol=1e-4)

    def test_yolo_wants_the_size_and_the_right_picture(self):
        with pytest.raises(UserError, match="image of these detections is not known"):
            some().to_yolo()
        assert len(some().to_yolo(size=(80, 60)).splitlines()) == 5
        with pytest.raises(UserError, match="Does it belong to another one"):
            Detections([[70, 50, 75, 55]], [1], [0], NAMES).to_yolo(size=(40, 40))

    def test_json_is_the_demo_s(self, tmp_path):
        from smartclip_det.formats.annotations import load_ground_truth
        from smartclip_det.formats.demo_answers import is_demo_answer, read_demo_answers

        picture().save(tmp_path / "a.png")
        found = some(4, image=tmp_path / "a.png")
        assert json.loads(found.to_json(tmp_path / "out/a.json")) == json.loads((tmp_path / "out/a.json").read_text())
        assert is_demo_answer(tmp_path / "out/a.json")
        truth = load_ground_truth(
            {
                "images": [{"id": 3, "file_name": "a.png", "width": 80, "height": 60}],
                "annotations": [],
                "categories": [{"id": i, "name": n} for i, n in enumerate(NAMES)],
            }
        )
        rows = read_demo_answers(tmp_path / "out/a.json", truth)
        assert np.allclose([r["bbox"][:2] for r in rows], found.boxes[:, :2])
        assert [r["category_id"] for r in rows] == found.labels.tolist()

    def test_what_is_not_installed_is_told_with_its_extra(self, monkeypatch):
        for module, export in (("pandas", some().to_pandas), ("supervision", some().to_supervision)):
            monkeypatch.setitem(sys.modules, module, None)
            with pytest.raises(UserError, match=rf'pip install "smartclip_det\[{module}\]"'):
                export()


class TestPictures:
    def test_crops_are_what_is_in_the_boxes(self):
        image = picture()
        found = Detections(
            [[10, 20, 30, 40], [70.4, 50.2, 90, 99], [5, 5, 5, 5], [79.9, 59.9, 80, 60]],
            [1, 1, 1, 1],
            [0, 0, 0, 0],
            NAMES,
            image,
        )
        first, second, third, fourth = found.crops()
        assert np.array_equal(first, np.asarray(image)[20:40, 10:30])
        assert np.array_equal(second, np.asarray(image)[50:60, 70:80])
        assert third.size == fourth.size == (1, 1)
        assert found.crops(context=2)[0].size == (40, 40)
        with pytest.raises(UserError, match="another one"):
            found.crops(picture((20, 20)))
        with pytest.raises(UserError, match="not known"):
            some().crops()

    def test_a_crowd_is_drawn_in_part_and_told(self, monkeypatch):
        notes = []
        monkeypatch.setattr("smartclip_det.apis.detections.note", notes.append)
        crowd = some(100, image=picture((400, 300)), size=(400, 300))
        crowd.plot()
        assert "20 of 100 boxes are drawn" in notes[0]
        assert np.array_equal(crowd.plot(), crowd[:20].plot())
        assert not np.array_equal(crowd.plot(limit=None), crowd.plot())

    def test_small_images_are_enlarged_with_their_boxes(self):
        image = Image.new("RGB", (100, 60), "white")
        one = Detections(np.array([[10.0, 20, 40, 50]]), np.array([0.9]), np.array([0]), ["a"], image=image)
        drawn = np.asarray(one.plot(min_side=120))
        assert drawn.shape == (120, 200, 3)
        # The left edge of the box, at twice its place; its line is 2 pixels wide.
        assert (drawn[90, 15:25] < 255).any(axis=-1).nonzero()[0].tolist() in ([5, 6], [4, 5])
        assert np.asarray(one.plot(min_side=60)).shape == np.asarray(one.plot(min_side=0)).shape == (60, 100, 3)

    def test_labels_of_a_hundred_boxes_stay_on_the_canvas_and_off_each_other(self, monkeypatch):
        from smartclip_det.visualization import draw

        places = []
        real = draw._label_place
        monkeypatch.setattr(draw, "_label_place", lambda *a: places.append(real(*a)) or places[-1])
        crowd = some(100, image=picture((640, 480)), size=(640, 480))
        crowd.plot(limit=None)
        assert len(places) == 100
        assert all(x1 >= 0 and y1 >= 0 and x2 <= 640 and y2 <= 480 for x1, y1, x2, y2 in places)
        places.clear()
        crowd.plot()
        covered = sum(draw._common(a, b) for n, a in enumerate(places) for b in places[:n])
        total = sum((p[2] - p[0]) * (p[3] - p[1]) for p in places)
        assert covered < 0.03 * total

    def test_a_name_has_one_colour_whatever_else_is_drawn(self):
        names = [f"name {n}" for n in range(40)]
        for n in (0, 9, 10, 33):
            alone = np.asarray(draw_boxes(Image.new("RGB", (60, 60)), [[5, 30, 50, 55]], [names[n]], names))
            assert (alone == colour_of(n)).all(-1).any()
        assert len({colour_of(n) for n in range(300)}) == 300
        assert all(contrast_with_white(colour_of(n)) >= 2.5 for n in range(300))

    def test_a_notebook_shows_picture_and_table(self):
        found = Detections([[1, 1, 9, 9]], [0.5], [0], ("<b>cup</b>",), picture())
        page = found._repr_html_()
        assert "&lt;b&gt;cup" in page
        assert "<b>cup" not in page
        data = base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])
        assert data == found._repr_png_()
        assert Image.open(io.BytesIO(data)).size == (400, 300)
        bare = some(50)
        assert bare._repr_png_() is None
        assert bare._repr_html_().count("<tr>") == 31
        assert "and 20 more" in bare._repr_html_()

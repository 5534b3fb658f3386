"""Images of annotation files, and the boxes that training uses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.training_boxes import REASONS, boxes_to_learn, check_before_training, refuse_nothing
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.pictures import check_pictures, fix_sizes, picture_name, picture_path
from tests.formats.test_annotation_check import content, fresh_notes  # noqa: F401


def photograph(path, width=128, height=96, orientation=1):
    """An image that displays at this size, stored rotated if EXIF says so."""
    stored = (height, width) if orientation >= 5 else (width, height)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*stored[::-1], 3), dtype=np.uint8)).save(path, exif=exif)


@pytest.fixture
def folder(tmp_path):
    for n in (1, 2):
        photograph(tmp_path / f"{n}.jpg")
    return tmp_path


def test_names_of_windows_and_of_lvis_are_found(tmp_path):
    (tmp_path / "val2017").mkdir()
    photograph(tmp_path / "val2017/1.jpg")
    url = {"id": 1, "coco_url": "http://images.cocodataset.org/val2017/1.jpg"}
    for root, image in (
        (tmp_path, {"file_name": "val2017\\1.jpg"}),
        (tmp_path, url),
        (tmp_path / "val2017", url),
        (tmp_path, {"file_name": None, **url}),
    ):
        assert picture_path(root, image) == tmp_path / "val2017/1.jpg"
    assert picture_name(url) == "val2017/1.jpg"
    for nothing in ({"id": 9}, {"id": 9, "file_name": ""}, {"id": 9, "file_name": 5}):
        with pytest.raises(UserError, match="image 9 has neither file_name nor coco_url"):
            picture_name(nothing)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_sizes_are_those_of_the_picture_as_shown(folder, orientation, capsys):
    photograph(folder / "1.jpg", 96, 128, orientation)
    data = content()
    data["annotations"][0].update(bbox=[30, 100, 26, 26], area=676)
    truth = load_ground_truth(data)
    assert boxes_to_learn(truth, {1, 2}).left_out == {"outside": 1}
    fix_sizes(truth, lambda i: picture_path(folder, i))
    assert truth.image_sizes == {1: (96, 128), 2: (128, 96)}
    assert truth.data["images"][0]["width"] == 96
    assert not boxes_to_learn(truth, {1, 2}).left_out
    assert "1 images have width and height swapped" in capsys.readouterr().out


def test_missing_sizes_come_from_pictures_and_without_one_a_box_has_no_place(folder):
    data = content()
    data["images"] = [{**i, "width": 0, "height": 0} for i in data["images"]]
    truth = load_ground_truth(data)
    with pytest.raises(UserError, match="image 1 has no width and height"):
        boxes_to_learn(truth, {1, 2})
    fix_sizes(truth, lambda i: picture_path(folder, i))
    assert truth.image_sizes == {1: (128, 96), 2: (128, 96)}
    assert [i["height"] for i in truth.data["images"]] == [96, 96]


def test_another_size_is_told_and_kept(folder, capsys):
    photograph(folder / "1.jpg", 50, 50)
    data = content()
    data["annotations"][0]["bbox"] = [120, 0, 40, 40]
    truth = load_ground_truth(data)
    fix_sizes(truth, lambda i: picture_path(folder, i))
    assert truth.image_sizes[1] == (128, 96)
    assert "1 images differ in size" in capsys.readouterr().out


def test_every_picture_is_read_before_anything_starts(folder):
    truth = load_ground_truth(content())
    check_pictures(truth, folder)
    whole = (folder / "2.jpg").read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"<html>not found</html>"):
        (folder / "2.jpg").write_bytes(broken)
        with pytest.raises(UserError, match=r"1 of 2 images of annotations cannot be read: .*2\.jpg"):
            check_pictures(truth, folder)
    (folder / "2.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images are not in .*2\.jpg"):
        check_pictures(truth, folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"iscrowd": 1}, "crowd"),
        ({"iscrowd": "1"}, "crowd"),
        ({"area": 0}, "area"),
        ({"bbox": [5, 5, 0.5, 20]}, "thin"),
        ({"bbox": [5, 5, 0, 0]}, "thin"),
        ({"bbox": [500, 500, 20, 20]}, "outside"),
        ({"bbox": [-40, 5, 20, 20]}, "outside"),
        ({"ignore": 1}, "ignore"),
    ],
)
def test_what_training_leaves_out_is_counted_by_reason_and_nothing_left_is_refused(change, reason):
    data = content()
    data["annotations"][0].update(change)
    boxes = boxes_to_learn(load_ground_truth(data), {1, 2})
    assert (boxes.used, boxes.left_out) == (3, {reason: 1})
    assert boxes.table().splitlines()[-1].split() == ["1", *REASONS[reason][0].split()]
    assert [len(b) for b in boxes.kept.values()] == [2 if reason == "crowd" else 1, 2]
    refuse_nothing(boxes, "x.json")
    none = boxes_to_learn(load_ground_truth(content(**change)), {1, 2})
    with pytest.raises(UserError, match="x.json has no box to learn from; left out: 4 "):
        refuse_nothing(none, "x.json")


def test_boxes_of_other_classes_are_left_out():
    boxes = boxes_to_learn(load_ground_truth(content()), {2})
    assert (boxes.used, boxes.left_out) == (2, {"class": 2})
    with pytest.raises(UserError, match=r"has no box to learn from\.$"):
        refuse_nothing(boxes_to_learn(load_ground_truth({**content(), "annotations": []}), {2}), "x.json")


def test_all_that_a_training_needs_is_read_first(folder, capsys):
    train, val = folder / "train.json", folder / "val.json"
    half = content()
    for a in half["annotations"][:2]:
        a["iscrowd"] = 1
    train.write_text(json.dumps(half))
    val.write_text(json.dumps({**content(), "categories": [*content()["categories"], {"id": 3, "name": "bus"}]}))
    assert check_before_training(train, folder, val, folder).path == str(train)
    told = capsys.readouterr().out
    assert "has classes that" in told
    assert "bus" in told
    assert "2  crowd (iscrowd 1)" in told
    train.write_text(json.dumps(content(area=0)))
    with pytest.raises(UserError, match=r"no box to learn from; left out: 4 with area 0 \(remove the field"):
        check_before_training(train, folder, val, folder)
    train.write_text(json.dumps({**content(), "annotations": []}))
    with pytest.raises(UserError, match="has no boxes to learn from"):
        check_before_training(train, folder, val, folder)
    train.write_text(json.dumps(content()))
    elsewhere = folder / "val"
    elsewhere.mkdir()
    photograph(elsewhere / "1.jpg")
    (elsewhere / "2.jpg").touch()
    with pytest.raises(UserError, match=r"val/2\.jpg"):
        check_before_training(train, folder, val, elsewhere)

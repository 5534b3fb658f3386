"""YOLO and VOC labels of the same 50 real images as COCO: boxes must agree with the COCO form of the same set."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.formats.to_coco import image_size, read_yolo_yaml, voc_to_coco, yolo_to_coco


@pytest.fixture
def yolo(tmp_path):
    """Two images, one turned by EXIF; a box, an outline, and an image without a label file."""
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "labels/train").mkdir(parents=True)
    Image.new("RGB", (200, 100)).save(tmp_path / "images/train/a.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(tmp_path / "images/train/b.jpg", exif=exif)
    Image.new("L", (10, 10)).save(tmp_path / "images/train/c.png")
    (tmp_path / "labels/train/a.txt").write_text("1 0.5 0.5 0.5 0.2\n\n")
    (tmp_path / "labels/train/b.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.6\n")
    (tmp_path / "data.yaml").write_text("path: .\ntrain: images/train\nnames: {0: cat, 1: dog}\n")
    return tmp_path


def test_boxes_outlines_and_turned_images(yolo):
    names, images = read_yolo_yaml(yolo / "data.yaml", "train")
    data = yolo_to_coco(images, names)
    assert [c["name"] for c in data["categories"]] == ["cat", "dog"]
    sizes = [(i["file_name"], i["width"], i["height"]) for i in data["images"]]
    assert sizes == [("a.jpg", 200, 100), ("b.jpg", 100, 200), ("c.png", 10, 10)]
    box, outline = data["annotations"]
    assert box["bbox"] == pytest.approx([50, 40, 100, 20])
    assert (box["image_id"], box["category_id"]) == (1, 2)
    assert outline["bbox"] == pytest.approx([10, 20, 40, 100])
    assert outline["area"] == pytest.approx(40 * 100 / 2)
    assert outline["segmentation"] == [pytest.approx([10, 20, 50, 20, 50, 120])]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2 0.5 0.5 0.1 0.1", "line 1: class 2 of 2"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5"),
        ("0 50 50 10 10", "shares of the image"),
        ("0 0.5 nan 0.1 0.1", "shares of the image"),
        ("0 0.5 0.5", "2 coordinates"),
        ("cat 0.5 0.5 0.1 0.1", "something else than numbers"),
    ],
)
def test_bad_lines_are_named(yolo, line, said):
    (yolo / "labels/train/a.txt").write_text(line)
    with pytest.raises(UserError, match=said):
        yolo_to_coco(yolo / "images/train", ["cat", "dog"])


def test_missing_things_are_told(yolo, tmp_path):
    with pytest.raises(UserError, match="no folder for the split 'val'. It has: train"):
        read_yolo_yaml(yolo / "data.yaml", "val")
    with pytest.raises(UserError, match="No YOLO data file"):
        read_yolo_yaml(yolo / "other.yaml", "val")
    with pytest.raises(UserError, match="given twice: cat"):
        yolo_to_coco(yolo / "images/train", ["cat", "cat"])
    (yolo / "labels/train/z.txt").write_text("")
    with pytest.raises(UserError, match="1 label files .* have no image"):
        yolo_to_coco(yolo / "images/train", ["cat", "dog"])
    (yolo / "pictures").mkdir()
    with pytest.raises(UserError, match='no part named "images"'):
        yolo_to_coco(yolo / "pictures", ["cat"])
    (yolo / "images/train/a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be read"):
        image_size(yolo / "images/train/a.jpg")


def test_both_layouts_of_real_images_agree(shared, tmp_path):
    root = shared / "voc_real_detections"
    voc = voc_to_coco(root / "Annotations", difficult="keep")
    by_stem = {i["id"]: i["file_name"].rsplit(".", 1)[0] for i in voc["images"]}
    names_of = {c["id"]: c["name"] for c in voc["categories"]}
    names = [n for n in (root / "voc.names").read_text().split("\n") if n.strip()]
    (tmp_path / "labels").mkdir()
    photographs = sorted((root / "JPEGImages").glob("*"))
    for path in photographs:
        shutil.copy(root / "labels_yolo" / f"{path.stem}.txt", tmp_path / "labels")
    yolo = yolo_to_coco(root / "JPEGImages", names, tmp_path / "labels")
    assert len(yolo["images"]) == len(photographs) == 24
    # The label files number classes by a list of their own: which class is which shows in the boxes.
    meant: dict[str, set[str]] = {}
    for image in yolo["images"]:
        stem = image["file_name"].rsplit(".", 1)[0]
        theirs = [a for a in voc["annotations"] if by_stem[a["image_id"]] == stem]
        ours = [a for a in yolo["annotations"] if a["image_id"] == image["id"]]
        assert len(ours) == len(theirs)
        for t in theirs:
            # That form was made from the corner numbers as they are: a pixel of difference, no more.
            o = min(ours, key=lambda a, t=t: np.abs(np.subtract(a["bbox"], t["bbox"])).max())
            np.testing.assert_allclose(o["bbox"], t["bbox"], atol=1.6)
            meant.setdefault(names[o["category_id"] - 1], set()).add(names_of[t["category_id"]])
    assert len(meant) > 8
    assert all(len(v) == 1 for v in meant.values())


def test_difficult_objects_are_kept_dropped_or_ignored(shared):
    folder = shared / "voc_real_detections/Annotations"
    keep, drop, ignore = (voc_to_coco(folder, difficult=d) for d in ("keep", "drop", "ignore"))
    assert sum(a["iscrowd"] for a in keep["annotations"]) == 0
    hard = sum(a["iscrowd"] for a in ignore["annotations"])
    assert len(keep["annotations"]) - len(drop["annotations"]) == hard
    assert [a["id"] for a in drop["annotations"]] == list(range(1, len(drop["annotations"]) + 1))
    peer = json.loads((shared / "voc_real_detections/gt_coco.json").read_text())
    assert len(keep["annotations"]) == len(peer["annotations"])

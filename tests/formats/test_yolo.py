"""YOLO labels as found in practice; real images give the same boxes as in COCO format."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.formats.pictures import picture_size
from smartclip_det.formats.to_coco import ToCocoOptions, convert, summary
from smartclip_det.formats.voc import voc_to_coco
from smartclip_det.formats.yolo import _decided, _kind, _Line, read_yolo_yaml, yolo_to_coco

BOX = "0 0.5 0.5 0.25 0.5"
PIXELS = [48, 24, 32, 48]


@pytest.fixture
def yolo(tmp_path):
    """Two images, one rotated by EXIF; a box, an outline, and an image without a label file."""
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


@pytest.fixture
def one(tmp_path):
    """One 128 x 96 image; returns the boxes of label lines, and the reported reasons."""
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    Image.new("RGB", (128, 96)).save(tmp_path / "images/a.jpg")

    def read(lines, yaml="", **options):
        content = lines if isinstance(lines, bytes) else lines.encode()
        (tmp_path / "labels/a.txt").write_bytes(content)
        (tmp_path / "data.yaml").write_text(f"train: images\nnames: [person]\n{yaml}")
        source = read_yolo_yaml(tmp_path / "data.yaml", "train")
        found = yolo_to_coco(source.images, source.names, key_points=source.key_points, **options)
        return found.data["annotations"], {k: n for k, n in found.notes.items() if n}

    return read


def test_boxes_outlines_and_turned_images(yolo):
    source = read_yolo_yaml(yolo / "data.yaml", "train")
    found = yolo_to_coco(source.images, source.names)
    data = found.data
    assert [c["name"] for c in data["categories"]] == ["cat", "dog"]
    sizes = [(i["file_name"], i["width"], i["height"]) for i in data["images"]]
    assert sizes == [("a.jpg", 200, 100), ("b.jpg", 100, 200), ("c.png", 10, 10)]
    box, outline = data["annotations"]
    assert box["bbox"] == pytest.approx([50, 40, 100, 20])
    assert (box["image_id"], box["category_id"]) == (1, 2)
    assert outline["bbox"] == pytest.approx([10, 20, 40, 100])
    assert outline["area"] == pytest.approx(40 * 100 / 2)
    assert outline["segmentation"] == [pytest.approx([10, 20, 50, 20, 50, 120])]
    assert {k: n for k, n in found.notes.items() if n} == {"images without a label file, read as empty": 1}


@pytest.mark.parametrize(
    ("line", "yaml", "reason"),
    [
        (f"{BOX} 7", "", "confidence or track id"),
        (f"{BOX} 0.91", "", "confidence or track id"),
        (f"{BOX} 0.91 17", "", "confidence or track id"),
        (f"{BOX} 0.91 1", "", "confidence or track id"),
        (f"{BOX} 3 0.91", "", "confidence or track id"),
        (f"{BOX} 0.45 0.3 0.55 0.3", "kpt_shape: [2, 2]", "key points"),
        (f"{BOX} 0.45 0.3 2 0.55 0.3 0", "kpt_shape: [2, 3]", "key points"),
        (f"{BOX} 0.45 0.3 0.55 0.3 0.8 4", "kpt_shape: [2, 2]", "key points"),
        (f"{BOX} 0 0 -5 9 1 1", "kpt_shape: [3, 2]", "key points"),
    ],
)
def test_further_columns_never_become_outlines(one, line, yaml, reason):
    (annotation,), told = one(line, yaml)
    assert annotation["bbox"] == pytest.approx(PIXELS)
    assert "segmentation" not in annotation
    assert [n for k, n in told.items() if reason in k] == [1]


def test_lines_that_leave_it_open_are_refused_unless_told(one):
    line = f"{BOX} 0.9 0.8"
    with pytest.raises(UserError, match="line 1 has 6 numbers .* Use --rows outlines or --rows boxes"):
        one(line)
    assert one(line, rows="boxes")[0][0]["bbox"] == pytest.approx(PIXELS)
    assert len(one(line, rows="outlines")[0][0]["segmentation"][0]) == 6
    # Other lines disambiguate: an outline of four points, or a line with a track id.
    outline = "0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9"
    assert all("segmentation" in a for a in one(f"{line}\n{outline}")[0])
    assert not any("segmentation" in a for a in one(f"{line}\n{BOX} 0.7 12")[0])


def test_oriented_boxes_are_the_rectangle_around_their_corners(one):
    assert one("0 0.4 0.3 0.6 0.3 0.6 0.7 0.4 0.7")[0][0]["bbox"] == pytest.approx([51.2, 28.8, 25.6, 38.4])


@pytest.mark.parametrize(
    ("lines", "yaml", "said"),
    [
        (f"{BOX} 0.45 0.3 0.55 0.3\n" * 3, "", "look like boxes with key points"),
        (f"{BOX} 0.45 0.3 2 0.55 0.3 1", "", "look like boxes with key points"),
        (f"{BOX} 0.45 0.3 2", "", "7 numbers after the class"),
        (f"{BOX} 0.45 0.3 2", "kpt_shape: [2, 3]", "4 of a box and 6 of its key points"),
        (BOX, "kpt_shape: [2]", "number of key points, 2 or 3"),
        (BOX, "kpt_shape: [a, 3]", "number of key points, 2 or 3"),
        (BOX, "kpt_shape: [0, 3]", "number of key points, 2 or 3"),
        ("0 0.5 0.5 -0.005 0.5", "", "negative"),
        (BOX, "nc: 2", "nc is 2, but 1 names"),
        (BOX, "names: [other]", "'names' is given twice"),
    ],
)
def test_labels_without_one_meaning_are_refused(one, lines, yaml, said):
    with pytest.raises(UserError, match=said):
        one(lines, yaml)


SHARES = st.floats(0, 1).map(lambda v: round(v, 6))


@given(
    st.lists(st.lists(SHARES, min_size=6, max_size=6), min_size=1, max_size=3), st.lists(SHARES, min_size=8, max_size=8)
)
def test_a_set_of_outlines_stays_one(triangles, square):
    lines = [_Line("here", 0, tuple(v)) for v in [*triangles, square]]
    assert set(_decided(lines, [_kind(line, "auto") for line in lines])) == {"outline"}


def test_boxes_without_area_are_counted(one):
    found, told = one(f"{BOX}\n0 0.5 0.5 0 0.5\n0 0.1 0.1 0.2 0.2 0.3 0.3 0.4 0.4")
    assert [a["id"] for a in found] == [1]
    assert told == {"boxes without area skipped": 2}


@pytest.mark.parametrize(
    "encode",
    [
        lambda t: b"\xef\xbb\xbf" + t.replace("\n", "\r\n").encode(),
        lambda t: t.encode("utf-16"),
        lambda t: t.replace("\n", "\r").encode(),
    ],
)
def test_encodings_of_windows_are_read(one, encode):
    assert [a["bbox"] for a in one(encode(f"{BOX}\n{BOX}\n"))[0]] == [pytest.approx(PIXELS)] * 2


def test_text_of_no_known_encoding_is_named(one):
    with pytest.raises(UserError, match=r"a\.txt, line 2, is not UTF-8 text"):
        one(f"{BOX}\n# größe".encode("latin-1"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2 0.5 0.5 0.1 0.1", "line 1: class 2 of 2"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5"),
        ("nan 0.5 0.5 0.1 0.1", "class nan"),
        ("0 50 50 10 10", "relative to the image"),
        ("0 0.5 nan 0.1 0.1", "relative to the image"),
        ("0 0.5 0.5", "2 coordinates"),
        ("cat 0.5 0.5 0.1 0.1", "not numbers"),
        ("0,0.5,0.5,0.1,0.1", "not numbers"),
    ],
)
def test_bad_lines_are_named(yolo, line, said):
    (yolo / "labels/train/a.txt").write_text(line)
    with pytest.raises(UserError, match=said):
        yolo_to_coco(yolo / "images/train", ["cat", "dog"])


def test_missing_things_are_told(yolo):
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
    with pytest.raises(UserError, match="No images in"):
        yolo_to_coco(yolo / "pictures", ["cat"])
    shutil.copy(yolo / "images/train/a.jpg", yolo / "pictures")
    with pytest.raises(UserError, match='no component named "images"'):
        yolo_to_coco(yolo / "pictures", ["cat"])
    (yolo / "images/train/a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be read"):
        picture_size(yolo / "images/train/a.jpg")


@pytest.mark.parametrize(
    ("names", "read"),
    [
        ("[on, off]", ["on", "off"]),
        ("[yes, no, 'true']", ["yes", "no", "true"]),
        ("[2020-01-01, 007, 1_000, 0x1F, 1e3, 12:30]", ["2020-01-01", "007", "1_000", "0x1F", "1e3", "12:30"]),
        ("{0: null, 1: ~}", ["null", "~"]),
        ("\n  0: y\n  1: n", ["y", "n"]),
    ],
)
def test_words_of_yaml_stay_texts(tmp_path, names, read):
    (tmp_path / "images").mkdir()
    (tmp_path / "d.yaml").write_text(f"train: images\nnames: {names}\n")
    assert read_yolo_yaml(tmp_path / "d.yaml", "train").names == read


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("{0: a, 0: b}", "'0' is given twice"),
        ("{0: a, 2: b}", "without gaps"),
        ("{a: b}", "without gaps"),
        ("[cat: 1]", "quote it"),
        ("['']", "quote it"),
        ("5", "has no names"),
        ("[a", "not valid YAML"),
    ],
)
def test_names_that_are_none_are_refused(tmp_path, names, said):
    (tmp_path / "d.yaml").write_text(f"train: images\nnames: {names}\n")
    with pytest.raises(UserError, match=said):
        read_yolo_yaml(tmp_path / "d.yaml", "train")


@pytest.mark.parametrize(
    ("yaml", "split", "named", "root"),
    [
        ("train: ../train/images", "train", ["a.jpg"], "train/images"),
        (r"train: ..\train\images", "train", ["a.jpg"], "train/images"),
        ("val: ../valid/images", "val", ["b.jpg"], "valid/images"),
        ("valid: valid/images", "val", ["b.jpg"], "valid/images"),
        ("path: /nowhere\ntrain: train/images", "train", ["a.jpg"], "train/images"),
        ("train: [train/images, valid/images]", "train", ["train/images/a.jpg", "valid/images/b.jpg"], "."),
        ("train: train.txt", "train", ["valid/images/b.jpg", "train/images/a.jpg"], "."),
        ("train: lists/deep.txt", "train", ["a.jpg"], "train/images"),
    ],
)
def test_places_of_splits(tmp_path, yaml, split, named, root):
    rf = tmp_path / "export"
    for part, stem in (("train", "a"), ("valid", "b")):
        (rf / part / "images").mkdir(parents=True)
        (rf / part / "labels").mkdir()
        Image.new("RGB", (128, 96)).save(rf / part / f"images/{stem}.jpg")
        (rf / part / f"labels/{stem}.txt").write_text(BOX)
    (rf / "train.txt").write_text("./valid/images/b.jpg\n.\\train\\images\\a.jpg\n./train/images/a.jpg\n\n")
    (rf / "lists").mkdir()
    (rf / "lists/deep.txt").write_text("train/images/a.jpg")
    (rf / "data.yaml").write_text(f"{yaml}\nnames: [helmet]\n")
    source = read_yolo_yaml(rf / "data.yaml", split)
    found = yolo_to_coco(source.images, source.names)
    assert [i["file_name"] for i in found.data["images"]] == named
    assert found.root.resolve() == (rf / root).resolve()
    assert [a["bbox"] for a in found.data["annotations"]] == [pytest.approx(PIXELS)] * len(named)
    assert found.notes["images listed twice, used once"] == ("train.txt" in yaml)


def test_places_that_are_not_there_are_named(tmp_path):
    (tmp_path / "d.yaml").write_text("path: x\ntrain: ../train/images\nval: v.txt\nnames: [a]\n")
    with pytest.raises(UserError, match="nothing exists at .*x/train/images.* Give the folder with --images"):
        read_yolo_yaml(tmp_path / "d.yaml", "train")
    (tmp_path / "v.txt").write_text("images/1.jpg\nimages/2.jpg")
    with pytest.raises(UserError, match="2 of 2 images named by the labels are not in"):
        yolo_to_coco(read_yolo_yaml(tmp_path / "d.yaml", "val").images, ["a"])
    (tmp_path / "v.txt").write_text("\n")
    with pytest.raises(UserError, match="lists no images"):
        yolo_to_coco(read_yolo_yaml(tmp_path / "d.yaml", "val").images, ["a"])


def test_nothing_is_written_on_a_fault_and_everything_told(yolo):
    options = ToCocoOptions("yolo", yolo / "out.json", data=yolo / "data.yaml")
    lines = summary(options, convert(options))
    assert "      1  dog" in lines[2]
    assert "note: 1 images without a label file, read as empty." in lines
    (yolo / "out.json").unlink()
    (yolo / "labels/train/a.txt").write_text("7 0.5 0.5 0.1 0.1")
    with pytest.raises(UserError, match="class 7"):
        convert(options)
    assert not (yolo / "out.json").exists()


def test_both_layouts_of_real_images_agree(shared, tmp_path):
    root = shared / "voc_real_detections"
    voc = voc_to_coco(root / "Annotations", difficult="keep").data
    by_stem = {i["id"]: i["file_name"].rsplit(".", 1)[0] for i in voc["images"]}
    names_of = {c["id"]: c["name"] for c in voc["categories"]}
    names = [n for n in (root / "voc.names").read_text().split("\n") if n.strip()]
    (tmp_path / "labels").mkdir()
    photographs = sorted((root / "JPEGImages").glob("*"))
    for path in photographs:
        shutil.copy(root / "labels_yolo" / f"{path.stem}.txt", tmp_path / "labels")
    yolo = yolo_to_coco(root / "JPEGImages", names, tmp_path / "labels").data
    assert len(yolo["images"]) == len(photographs) == 24
    # The label files number classes by their own list; boxes determine which class is which.
    meant: dict[str, set[str]] = {}
    for image in yolo["images"]:
        stem = image["file_name"].rsplit(".", 1)[0]
        theirs = [a for a in voc["annotations"] if by_stem[a["image_id"]] == stem]
        ours = [a for a in yolo["annotations"] if a["image_id"] == image["id"]]
        assert len(ours) == len(theirs)
        for t in theirs:
            # That file was made from the unadjusted corners: at most a pixel of difference.
            o = min(ours, key=lambda a, t=t: np.abs(np.subtract(a["bbox"], t["bbox"])).max())
            np.testing.assert_allclose(o["bbox"], t["bbox"], atol=1.6)
            meant.setdefault(names[o["category_id"] - 1], set()).add(names_of[t["category_id"]])
    assert len(meant) > 8
    assert all(len(v) == 1 for v in meant.values())

"""VOC XML files as found in practice."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.formats.to_coco import ToCocoOptions, categories_in, convert, summary
from smartclip_det.formats.voc import load_voc_folder, read_voc_xml, voc_to_coco

SIZE = "<size><width>128</width><height>96</height></size>"


def thing(name="dog", corners=(11, 11, 50, 50), difficult=None):
    ends = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{k}>{v}</{k}>" for k, v in ends)
    hard = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{hard}<bndbox>{box}</bndbox></object>"


def xml(*things, name="a.jpg", size=SIZE, head=""):
    return f"{head}<annotation><filename>{name}</filename>{size}{''.join(things)}</annotation>"


@pytest.fixture
def folder(tmp_path):
    """Write XML files and 128 x 96 images."""

    def write(files, pictures=()):
        (tmp_path / "xml").mkdir(exist_ok=True)
        for name, content in files.items():
            (tmp_path / "xml" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        for name in pictures:
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (128, 96)).save(path)
        return tmp_path / "xml", tmp_path / "images"

    return write


def head(encoding):
    return f'<?xml version="1.0" encoding="{encoding}"?>'


@pytest.mark.parametrize(
    ("declared", "written", "name"),
    [
        ("gb2312", "gb2312", "猫"),
        ("GBK", "gbk", "猫"),
        ("gb2312", "gb18030", "镕"),
        ("utf-8", "utf-8-sig", "猫"),
        ("utf-16", "utf-16", "猫"),
        ("UTF-16", "utf-16-le", "猫"),
        ("big5", "big5", "貓"),
        ("shift_jis", "shift_jis", "猫"),
        ("ISO-8859-1", "latin-1", "Möwe"),
        ("windows-1251", "cp1251", "кот"),
    ],
)
def test_encodings_that_files_declare_are_read(folder, declared, written, name):
    source, _ = folder({"a.xml": xml(thing(name), head=head(declared)).encode(written)})
    assert read_voc_xml(source / "a.xml").objects == [(name, [11, 11, 50, 50], False)]
    assert load_voc_folder(source).categories == {1: name}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (xml(thing("猫"), head=head("klingon")).encode(), r"a\.xml cannot be decoded as 'klingon'"),
        (xml(thing("猫"), head=head("hex")).encode(), "cannot be decoded as 'hex'"),
        (xml(thing("汽车"), head=head("utf-8")).encode("gbk"), "cannot be decoded as 'utf-8'"),
        (xml(thing("汽车")).encode("gbk"), "Save it as UTF-8"),
        ("<annotation><object>", "not valid XML"),
        ("", "not valid XML"),
        ("<svg/>", "found <svg>"),
        (xml(thing(" ")), "object 1 has no <name>"),
        (xml(thing(), thing(corners=(1, 1, "x", 9))), "object 2: <xmax> is missing or not a number"),
        (xml(thing(corners=(1, 1, "nan", 9))), "<xmax> is missing or not a number"),
        (xml(thing(corners=(1, 1, "1e400", 9))), "<xmax> is missing or not a number"),
        (xml("<object><name>dog</name></object>"), "<xmin> is missing"),
        (xml(thing(corners=(50, 1, 11, 9))), "corners are swapped"),
        (xml(thing(difficult="maybe")), "<difficult> is 'maybe'"),
    ],
)
def test_files_that_cannot_be_read_are_named(folder, content, said):
    source, _ = folder({"a.xml": content})
    for read in (load_voc_folder, voc_to_coco):
        with pytest.raises(UserError, match=said):
            read(source)


@pytest.mark.parametrize(
    ("written", "hard"),
    [
        ("1", 1),
        (" 1 ", 1),
        ("True", 1),
        ("\n yes\n", 1),
        ("0", 0),
        ("false", 0),
        ("", 0),
        ("Unspecified", 0),
        (None, 0),
    ],
)
def test_difficult_in_all_spellings(folder, written, hard):
    source, _ = folder({"a.xml": xml(thing(difficult=written))})
    assert load_voc_folder(source).data["annotations"][0]["difficult"] == hard
    assert voc_to_coco(source).data["annotations"][0]["iscrowd"] == hard
    dropped = voc_to_coco(source, difficult="drop")
    assert len(dropped.data["annotations"]) == 1 - hard
    assert dropped.notes["difficult objects dropped"] == hard


def test_names_are_trimmed_and_all_splits_get_one_list(folder, tmp_path):
    source, _ = folder({"a.xml": xml(thing("\n    dog \n  "), thing("fire\n hydrant"), thing("cat"))})
    options = ToCocoOptions("voc", tmp_path / "train.json", xml=source)
    lines = summary(options, convert(options))
    assert lines[-1].endswith(f"--vocabulary {tmp_path / 'train.json'} to reuse them.")
    names = categories_in(tmp_path / "train.json")
    assert names == ["cat", "dog", "fire hydrant"]
    (source / "a.xml").write_text(xml(thing("dog")))
    assert voc_to_coco(source).data["categories"] == [{"id": 1, "name": "dog"}]
    val = voc_to_coco(source, names=names).data
    assert [c["name"] for c in val["categories"]] == names
    assert val["annotations"][0]["category_id"] == 2
    with pytest.raises(UserError, match=r"'dog' \(nearest: dogs"):
        voc_to_coco(source, names=["cat", "dogs"])
    # The VOC protocol has its own class ids, whichever classes a folder contains.
    assert load_voc_folder(source).data["annotations"][0]["category_id"] == 12


def test_class_lists_of_other_files(tmp_path):
    (tmp_path / "n.json").write_text('["a", "b"]')
    (tmp_path / "n.txt").write_text("a\nb")
    assert categories_in(tmp_path / "n.json") is None
    assert categories_in(tmp_path / "n.txt") is None
    (tmp_path / "n.json").write_text(json.dumps({"categories": [{"id": 0, "name": "a"}]}))
    with pytest.raises(UserError, match="must be 1 to 1"):
        categories_in(tmp_path / "n.json")
    (tmp_path / "n.json").write_text("{}")
    with pytest.raises(UserError, match="no COCO categories"):
        categories_in(tmp_path / "n.json")


@pytest.mark.parametrize(
    "size",
    [
        "",
        "<size/>",
        "<size><width>0</width><height>0</height></size>",
        "<size><width>x</width><height>9</height></size>",
        "<size><width>-4</width><height>9</height></size>",
        "<size><width>nan</width><height>1e999</height></size>",
    ],
)
def test_sizes_that_are_none_come_from_the_picture(folder, size):
    source, images = folder({"a.xml": xml(thing(), size=size)}, ["a.jpg"])
    with pytest.raises(UserError, match=r"has no size .*--images"):
        voc_to_coco(source)
    found = voc_to_coco(source, images)
    assert (found.data["images"][0]["width"], found.data["images"][0]["height"]) == (128, 96)
    assert found.data["annotations"][0]["bbox"] == [10, 10, 40, 40]
    assert "the XML file has none" in str(found.notes)


@pytest.mark.parametrize(("width", "height", "said"), [(96, 128, "swapped"), (64, 48, "so boxes may be wrong")])
def test_sizes_that_differ_from_the_picture_are_told(folder, width, height, said):
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    source, images = folder({"a.xml": xml(thing(), size=size)}, ["a.jpg"])
    found = voc_to_coco(source, images)
    assert found.data["images"][0]["width"] == 128
    assert said in str(found.notes)


@pytest.mark.parametrize(
    ("given", "there"),
    [
        ("front", "front.jpg"),
        ("front.v2", "front.v2.png"),
        (r"sub\front.jpg", "sub/front.jpg"),
        ("FRONT.JPG", "front.jpg"),
        (r"C:\data\front.jpg", "front.jpg"),
        ("/home/me/front.jpg", "front.jpg"),
        ("front.png", "front.JPG"),
        ("front.jpg", "deep/front.jpg"),
        (" front.jpg\n", "front.jpg"),
        ("", "a.jpg"),
    ],
)
def test_pictures_are_looked_for(folder, given, there):
    source, images = folder({"a.xml": xml(thing(), name=given)}, [there, "other.jpg"])
    assert voc_to_coco(source, images).data["images"][0]["file_name"] == there


def test_pictures_that_are_not_there_or_not_one_are_refused(folder):
    source, images = folder({"a.xml": xml(thing(), name="back")}, ["x/front.jpg", "y/front.jpg"])
    with pytest.raises(UserError, match="1 of 1 images named by the labels are not in .*images/back"):
        voc_to_coco(source, images)
    assert voc_to_coco(source).notes["images named without a suffix: --images DIR looks them up"] == 1
    folder({"a.xml": xml(thing(), name="front")})
    with pytest.raises(UserError, match="has several images of that name: x/front.jpg, y/front.jpg"):
        voc_to_coco(source, images)
    folder({"a.xml": xml(name="x/front"), "b.xml": xml(name="x/front.jpg")})
    with pytest.raises(UserError, match="belong to several XML files"):
        voc_to_coco(source, images)
    folder({"b.xml": xml(name="x/front")})
    with pytest.raises(UserError, match="named by several XML files, e.g. x/front by a.xml and b.xml"):
        voc_to_coco(source)
    folder({"b.xml": xml(name="b")})
    with pytest.raises(UserError, match="No image folder"):
        voc_to_coco(source, source / "none")


def test_difficult_objects_of_real_files_are_kept_dropped_or_ignored(shared):
    folder = shared / "voc_real_detections/Annotations"
    keep, drop, ignore = (voc_to_coco(folder, difficult=d).data for d in ("keep", "drop", "ignore"))
    assert sum(a["iscrowd"] for a in keep["annotations"]) == 0
    hard = sum(a["iscrowd"] for a in ignore["annotations"])
    assert len(keep["annotations"]) - len(drop["annotations"]) == hard
    assert [a["id"] for a in drop["annotations"]] == list(range(1, len(drop["annotations"]) + 1))
    peer = json.loads((shared / "voc_real_detections/gt_coco.json").read_text())
    assert len(keep["annotations"]) == len(peer["annotations"])

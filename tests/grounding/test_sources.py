"""Expressions out of D-cube, FG-OVD and Flickr30k Entities."""

from __future__ import annotations

import json

import pytest

from smartclip_det.core.errors import UserError
from smartclip_det.evaluation.referring_files import load_expressions
from smartclip_det.evaluation.referring_sources import read_dcube, read_fgovd, read_flickr_entities, source_of
from tests.tools.test_runs import run

SENTENCES = """[/EN#1/people Two men] look at [/EN#2/animals a brown dog] .
[/EN#1/people The men] stand on [/EN#3/scene a street] ."""
BOXES = """<annotation><filename>7.jpg</filename><size><width>100</width><height>80</height></size>
<object><name>1</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>
<object><name>1</name><name>2</name><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>50</xmax><ymax>60</ymax></bndbox></object>
<object><name>3</name><scene>1</scene></object></annotation>"""


@pytest.fixture
def flickr(tmp_path):
    for name, content in {"Sentences/7.txt": SENTENCES, "Annotations/7.xml": BOXES, "val.txt": "7\n8\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def test_phrases_of_flickr_entities(flickr, tmp_path):
    found = read_flickr_entities(flickr)
    assert [(e.id, e.sentence, len(e.boxes)) for e in found] == [
        ("7_0_0", "Two men", 2), ("7_0_1", "a brown dog", 1), ("7_1_0", "The men", 2), ("7_1_1", "a street", 0),
    ]  # fmt: skip
    assert found[1].boxes == ((5.0, 6.0, 50.0, 60.0),)
    assert {(e.file_name, e.width, e.height, e.split) for e in found} == {("7.jpg", 100, 80, "val")}
    run("tools/data/convert_grounding.py", flickr, tmp_path / "f.jsonl")
    assert load_expressions(tmp_path / "f.jsonl") == found
    (flickr / "Annotations/7.xml").write_text("<annotation>")
    with pytest.raises(UserError, match="cannot be read as Flickr30k Entities"):
        read_flickr_entities(flickr)
    (flickr / "Annotations/7.xml").unlink()
    with pytest.raises(UserError, match="No annotations at"):
        read_flickr_entities(flickr)
    with pytest.raises(UserError, match="no Flickr30k Entities folder"):
        read_flickr_entities(flickr / "Annotations")


def test_sentences_of_dcube_with_none_one_and_many(tmp_path):
    image = {"file_name": "a.jpg", "width": 10, "height": 10}
    box = {"area": 1, "iscrowd": 0}
    data = {
        "images": [{"id": 1, "sent_ids": [5, 6], **image}, {"id": 2, "sent_ids": [6], **image}],
        "categories": [{"id": 5, "name": "a dog without a lead", "is_negative": True}, {"id": 6, "name": "a dog"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 6, "bbox": [1, 1, 3, 4], **box},
                        {"id": 2, "image_id": 1, "category_id": 6, "bbox": [5, 5, 2, 2], **box}],
    }  # fmt: skip
    (tmp_path / "d3.json").write_text(json.dumps(data))
    assert source_of(tmp_path / "d3.json") == "dcube"
    found = read_dcube(tmp_path / "d3.json")
    assert [(e.image_id, e.sentence, len(e.boxes)) for e in found] == [
        (1, "a dog without a lead", 0), (1, "a dog", 2), (2, "a dog", 0),
    ]  # fmt: skip
    assert found[1].boxes == ((1, 1, 4, 5), (5, 5, 7, 7))
    data["images"][1]["sent_ids"] = [9]
    (tmp_path / "d3.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="sentence 9"):
        read_dcube(tmp_path / "d3.json")


def test_captions_of_the_real_fgovd_slice(shared):
    for name, count in (("3_attributes", 14), ("pattern", 3), ("transparency", 4)):
        path = shared / f"fgovd_slice/{name}.json"
        assert source_of(path) == "fgovd"
        found = read_fgovd(path)
        assert len(found) == count
        assert all(len(e.boxes) == len(e.masks) == 1 and e.width for e in found)

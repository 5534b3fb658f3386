"""Expressions from D-cube, FG-OVD, Ref-L4 and Flickr30k Entities."""

from __future__ import annotations

import json

import pytest

from smartclip_det.core.errors import UserError
from smartclip_det.formats.expressions.loading import load_expressions
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
    found = load_expressions(flickr)
    assert [(e.id, e.sentence, len(e.boxes)) for e in found] == [
        ("7_0_0", "Two men", 2),
        ("7_0_1", "a brown dog", 1),
        ("7_1_0", "The men", 2),
        ("7_1_1", "a street", 0),
    ]
    assert found[1].boxes == ((5.0, 6.0, 50.0, 60.0),)
    assert {(e.file_name, e.width, e.height, e.split) for e in found} == {("7.jpg", 100, 80, "val")}
    run("tools/data/convert_grounding.py", flickr, tmp_path / "f.jsonl")
    assert load_expressions(tmp_path / "f.jsonl") == found
    (flickr / "Annotations/7.xml").write_text("<annotation>")
    with pytest.raises(UserError, match="cannot be read as Flickr30k Entities"):
        load_expressions(flickr)
    (flickr / "Annotations/7.xml").unlink()
    with pytest.raises(UserError, match="No annotations at"):
        load_expressions(flickr)
    with pytest.raises(UserError, match="no expressions in a known layout"):
        load_expressions(flickr / "Annotations")


def test_sentences_of_dcube_with_none_one_and_many(tmp_path):
    image = {"file_name": "a.jpg", "width": 10, "height": 10}
    box = {"area": 1, "iscrowd": 0}
    data = {
        "images": [{"id": 1, "sent_ids": [5, 6], **image}, {"id": 2, "sent_ids": [6], **image}],
        "categories": [{"id": 5, "name": "a dog without a lead", "is_negative": True}, {"id": 6, "name": "a dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 6, "bbox": [1, 1, 3, 4], **box},
            {"id": 2, "image_id": 1, "category_id": 6, "bbox": [5, 5, 2, 2], **box},
        ],
    }
    (tmp_path / "d3.json").write_text(json.dumps(data))
    found = load_expressions(tmp_path / "d3.json")
    assert [(e.image_id, e.sentence, len(e.boxes)) for e in found] == [
        (1, "a dog without a lead", 0),
        (1, "a dog", 2),
        (2, "a dog", 0),
    ]
    assert found[1].boxes == ((1, 1, 4, 5), (5, 5, 7, 7))
    data["images"][1]["sent_ids"] = [9]
    (tmp_path / "d3.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="sentence 9"):
        load_expressions(tmp_path / "d3.json")


def test_captions_of_the_real_fgovd_slice(shared):
    for name, count in (("3_attributes", 14), ("pattern", 3), ("transparency", 4)):
        path = shared / f"fgovd_slice/{name}.json"
        found = load_expressions(path)
        assert len(found) == count
        assert all(len(e.boxes) == len(e.masks) == 1 and e.width for e in found)


def ref_l4_row(key, side, category, **more):
    return {
        "id": key,
        "caption": f"sentence {key}",
        "bbox": [10.0, 20.0, side, side],
        "ori_category_id": category,
        "image_id": f"o365_{key}",
        "height": 700,
        "width": 800,
        "file_name": f"{key}.jpg",
        "is_rewrite": False,
        **more,
    }


def test_ref_l4_from_parquet_to_its_accuracies(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    source = tmp_path / "Ref-L4"
    source.mkdir()
    # Sides 100 (small), 128 and 256 (medium), 300 (large); refcoco_16 and refcoco_6 are one class, o365_9 another.
    rows = [ref_l4_row(1, 100.0, "refcoco_16", split="val"), ref_l4_row(2, 128.0, "refcoco_6", split="val")]
    parquet.write_table(pyarrow.Table.from_pylist(rows), source / "ref-l4-val.parquet")
    rows = [ref_l4_row(3, 256.0, "o365_9"), ref_l4_row(4, 300.0, "refcoco_44")]
    parquet.write_table(pyarrow.Table.from_pylist(rows), source / "ref-l4-test.parquet")
    found = load_expressions(source)
    assert [(e.id, e.split, e.category) for e in found] == [
        (3, "test", "o365_9"),
        (4, "test", "refcoco_44"),
        (1, "val", "refcoco_16"),
        (2, "val", "refcoco_6"),
    ]
    assert found[0].boxes == ((10.0, 20.0, 266.0, 276.0),)
    assert (
        run(
            "tools/data/convert_grounding.py", source, tmp_path / "r.jsonl", "--check", "ref-l4", check=False
        ).returncode
        == 2
    )
    run("tools/data/convert_grounding.py", source, tmp_path / "r.jsonl")
    assert load_expressions(tmp_path / "r.jsonl") == found
    # Hits at IoU 1 (small), exactly 0.5 (medium: no hit, the rule is strict), 0.75 (medium), and nothing (large).
    boxes = {1: [10, 20, 110, 120], 2: [10, 20, 138, 84], 3: [10, 20, 266, 212]}
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps({"id": k, "boxes": [b], "scores": [1.0]}) + "\n" for k, b in boxes.items())
    )
    run(
        "tools/evaluate.py",
        "ref-l4",
        "--ann",
        tmp_path / "r.jsonl",
        "--pred",
        tmp_path / "p.jsonl",
        "--out",
        tmp_path / "o.json",
    )
    told = json.loads((tmp_path / "o.json").read_text())
    assert told["protocol"]["strict"] is True
    want = {
        "acc50": 0.5,
        "acc75": 0.25,
        "acc90": 0.25,
        "acc_mean": (10 + 5) / 40,
        "acc50_small": 1.0,
        "acc50_medium": 0.5,
        "acc_mean_medium": 0.25,
        "acc50_large": 0.0,
        "acc50_class_average": 0.5,
        "acc_mean_class_average": (0.5 + 0.25) / 2,
    }
    assert {k: told["metrics"][k] for k in want} == pytest.approx(want)
    assert told["counts"] == {"sentences": 4, "missing": 1, "empty": 0}


def test_broken_ref_l4_files(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a readable parquet file"):
        load_expressions(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([{"id": 1, "text": "a"}]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column caption, bbox, file_name, ori_category_id; it has id, text"):
        load_expressions(tmp_path / "a.parquet")
    (tmp_path / "e.jsonl").write_text('{"id": 1, "boxes": [[0, 0, 9, 9]], "sentence": "a"}\n')
    (tmp_path / "p.jsonl").write_text('{"id": 1, "boxes": [[0, 0, 9, 9]]}\n')
    done = run(
        "tools/evaluate.py", "ref-l4", "--ann", tmp_path / "e.jsonl", "--pred", tmp_path / "p.jsonl", check=False
    )
    assert done.returncode == 2
    assert "have no category" in done.stderr

"""Invalid expression files are rejected with line and id, in every layout."""

from __future__ import annotations

import json
import pickle

import pytest

from smartclip_det.core.errors import UserError
from smartclip_det.formats.candidates import candidates_of
from smartclip_det.formats.expressions.loading import load_expressions
from smartclip_det.metrics.referring import chance_accuracy

GOOD = {
    "id": 7,
    "image_id": 1,
    "file_name": "1.png",
    "sentence": "a cup",
    "boxes": [[10, 10, 60, 50]],
    "width": 100,
    "height": 80,
}


def lines(tmp_path, *rows):
    path = tmp_path / "refs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def mdetr(tmp_path, *boxes, image_id=1, caption="a cup"):
    path = tmp_path / "finetune.json"
    path.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "1.png", "caption": caption, "width": 100, "height": 80}],
                "annotations": [
                    {"id": n, "image_id": image_id, "category_id": 1, "bbox": b} for n, b in enumerate(boxes)
                ],
                "categories": [{"id": 1, "name": "object"}],
            }
        )
    )
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"boxes": [[10, 10, float("nan"), 50]]}, "not finite"),
        ({"boxes": [[10, 10, 60, 50], [0, 0, float("inf"), 5]]}, "box 1 is not finite"),
        ({"boxes": [[60, 10, 20, 40]]}, "x1 < x2"),
        ({"boxes": [[10, 10, 60, 10]]}, "no area"),
        ({"sentence": None}, "the sentence must be a string; got None"),
        ({"sentence": ["a cup", "a mug"]}, "one record per sentence"),
        ({"sentence": "  "}, "empty"),
        ({"id": None}, "an id must be"),
        ({"id": 1.5}, "an id must be"),
        ({"id": True}, "an id must be"),
    ],
)
def test_a_wrong_line_is_refused_with_line_and_id(tmp_path, change, says):
    path = lines(tmp_path, GOOD, GOOD | {"id": 8} | change)
    with pytest.raises(UserError, match=says) as error:
        load_expressions(path)
    assert "line 2" in str(error.value) or says == "empty"
    assert repr((GOOD | {"id": 8} | change)["id"]) in str(error.value)


def test_a_sentence_under_another_key_is_told(tmp_path):
    row = {("caption" if k == "sentence" else k): v for k, v in GOOD.items()}
    with pytest.raises(UserError, match=r"line 1 \(id 7\): the text has the key 'caption'"):
        load_expressions(lines(tmp_path, row), needs_sentences=False)


def test_scoring_boxes_needs_no_sentences_and_all_else_does(tmp_path):
    path = lines(tmp_path, {k: v for k, v in GOOD.items() if k != "sentence"})
    assert load_expressions(path, needs_sentences=False)[0].sentence == ""
    with pytest.raises(UserError, match=r"id 7\): the sentence is empty"):
        load_expressions(path)


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        ([[0.1, 0.1, 0.6, 0.5]], "between 0 and 1"),
        ([[400, 300, 460, 350]], "leave their images"),
        ([[10, 10, 60, 50], [60, 20, 140, 70]], "1 of 2 boxes leave"),
    ],
)
def test_boxes_in_another_form_are_refused(tmp_path, boxes, says):
    with pytest.raises(UserError, match=says):
        load_expressions(lines(tmp_path, GOOD | {"boxes": boxes}))


def test_few_boxes_that_leave_by_little_are_kept_and_told(tmp_path, caplog):
    rows = [GOOD | {"id": n} for n in range(30)] + [GOOD | {"id": 99, "boxes": [[10, 10, 108, 50]]}]
    assert load_expressions(lines(tmp_path, *rows))[-1].boxes == ((10.0, 10.0, 108.0, 50.0),)
    assert "1 of 31 boxes leave" in caplog.text


def test_corners_in_an_mdetr_file_leave_the_image(tmp_path):
    assert load_expressions(mdetr(tmp_path, [40, 30, 50, 40]))[0].boxes == ((40, 30, 90, 70),)
    with pytest.raises(UserError, match=r"x, y, width, height"):
        load_expressions(mdetr(tmp_path, [40, 30, 90, 70]))


def test_null_captions_and_annotations_without_an_image_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"id 1\): the sentence must be a string"):
        load_expressions(mdetr(tmp_path, [40, 30, 50, 40], caption=None))
    with pytest.raises(UserError, match="refer to no image, e.g. image_id '1'"):
        load_expressions(mdetr(tmp_path, [40, 30, 50, 40], image_id="1"))


def test_ids_of_two_types_that_read_alike_are_repeated(tmp_path):
    with pytest.raises(UserError, match="repeats 1"):
        load_expressions(lines(tmp_path, GOOD, GOOD | {"id": "7"}))


def test_a_line_ends_at_a_line_feed_alone(tmp_path):
    text = "a cup\N{LINE SEPARATOR}of tea\N{NEXT LINE}"
    path = tmp_path / "refs.jsonl"
    path.write_text(json.dumps(GOOD | {"sentence": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert load_expressions(path)[0].sentence == text


def refs_folder(tmp_path, sentence, image_id=1):
    refs = [
        {
            "ref_id": 0,
            "ann_id": 5,
            "image_id": 1,
            "category_id": 1,
            "split": "val",
            "file_name": "COCO_1_5.jpg",
            "sent_ids": [3],
            "sentences": [{"sent_id": 3, "sent": sentence, "raw": sentence, "tokens": []}],
        }
    ]
    (tmp_path / "instances.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "1.jpg", "width": 100, "height": 80}],
                "annotations": [{"id": 5, "image_id": image_id, "category_id": 1, "bbox": [1, 1, 20, 20]}],
                "categories": [{"id": 1, "name": "cup"}],
            }
        )
    )
    return refs


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_python_2_strings_keep_their_letters(tmp_path, encoding):
    refs = refs_folder(tmp_path, "PLACE")
    # Python 2 wrote byte strings with these opcodes; Python 3's protocol 0 does not.
    content = pickle.dumps(refs, protocol=2)
    word = "caf\u00e9".encode(encoding)
    old = b"X" + (5).to_bytes(4, "little") + b"PLACE"
    assert old in content
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content.replace(old, b"U" + bytes([len(word)]) + word))
    assert load_expressions(path)[0].sentence == "caf\u00e9"


def test_annotations_of_another_image_are_refused(tmp_path):
    path = tmp_path / "refs.json"
    path.write_text(json.dumps(refs_folder(tmp_path, "a cup", image_id=2)))
    with pytest.raises(UserError, match="do not belong together"):
        load_expressions(path)


def test_candidates_are_all_boxes_of_the_file_whatever_is_left_out(tmp_path):
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]
    found = load_expressions(
        lines(
            tmp_path,
            GOOD | {"id": 1, "boxes": boxes[:1]},
            GOOD | {"id": 2, "boxes": boxes},
            GOOD | {"id": 3, "boxes": []},
        )
    )
    candidates = candidates_of("ground-truth", found[:1], known=found)
    assert len(candidates[1].boxes) == 3
    assert chance_accuracy(found[:1], {1: candidates[1].boxes}) == pytest.approx(1 / 3)

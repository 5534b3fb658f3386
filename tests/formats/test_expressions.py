"""Round trips of expression layouts, full counts, leakage."""

from __future__ import annotations

import itertools
import json
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.leakage import find_leaks, image_key, training_images, without
from smartclip_det.formats.expressions import odvg
from smartclip_det.formats.expressions.counts import FULL_SETS, check_counts
from smartclip_det.formats.expressions.loading import load_expressions
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.formats.expressions.writing import write_layout
from tests.tools.test_runs import run

BOXES = ((0.0, 1.0, 10.0, 12.0), (3.5, 4.0, 30.0, 20.0))


def some(**more):
    rows = [("the dog", BOXES[:1]), ("both dogs", BOXES), ("a unicorn", ())]
    return [
        Expression(
            n,
            7 + n // 2,
            f"COCO_train2014_{7 + n // 2:012d}.jpg",
            t,
            b,
            64,
            48,
            split="val",
            dataset="x",
            ann_ids=tuple(range(100 * n, 100 * n + len(b))),
            **more,
        )
        for n, (t, b) in enumerate(rows)
    ]


@pytest.mark.parametrize("layout", ["jsonl", "mdetr", "refs"])
def test_none_one_and_many_survive_every_layout(layout, tmp_path):
    target = tmp_path / {"jsonl": "e.jsonl", "mdetr": "e.json", "refs": "folder"}[layout]
    assert write_layout(target, some(), layout) == {"sentences": 3, "without_target": 1, "many_targets": 1}
    read = load_expressions(target / "refs.json" if layout == "refs" else target)
    assert [(e.sentence, e.boxes, e.file_name, e.width, e.height) for e in read] == [
        (e.sentence, e.boxes, e.file_name, e.width, e.height) for e in some()
    ]
    if layout == "jsonl":
        assert read == some()
    named = [replace(e, category="o365_1") for e in some()]
    write_layout(target, named, layout)
    assert {e.category for e in load_expressions(target / "refs.json" if layout == "refs" else target)} == {"o365_1"}
    if layout == "mdetr":
        assert [(e.id, e.split) for e in read] == [(e.id, e.split) for e in some()]


def test_the_refer_toolbox_s_pickle_holds_what_the_json_does(tmp_path):
    write_layout(tmp_path / "r", some(), "refs")
    assert load_expressions(tmp_path / "r/refs(own).p") == load_expressions(tmp_path / "r/refs.json")
    with (tmp_path / "r/refs(own).p").open("rb") as handle:
        assert pickle.load(handle) == json.loads((tmp_path / "r/refs.json").read_text())


@pytest.mark.parametrize("name", ["unc", "gref_umd", "referit", "flickr"])
def test_transvg_files_are_written_as_they_are_read(name, tmp_path):
    rows = [replace(e, boxes=BOXES[1:], ann_ids=()) for e in some()]
    assert write_layout(tmp_path / f"{name}_val.pth", rows, "transvg")["sentences"] == 3
    found = load_expressions(tmp_path / f"{name}_val.pth")
    assert [(e.file_name, e.sentence, e.boxes, e.split) for e in found] == [
        (e.file_name, e.sentence, e.boxes, "val") for e in rows
    ]
    first = torch.load(tmp_path / f"{name}_val.pth", weights_only=True)[0]
    box = [3.5, 4.0, 30.0, 20.0] if name in ("referit", "flickr") else [3.5, 4.0, 26.5, 16.0]
    assert first[1 if name == "flickr" else 2] == box
    for bad in (some(), [replace(rows[0], split="train")], [replace(rows[0], category="x")]):
        with pytest.raises(UserError, match="transvg stores one box per sentence"):
            write_layout(tmp_path / f"{name}_val.pth", bad, "transvg")
    with pytest.raises(UserError, match="does not name a TransVG data set"):
        write_layout(tmp_path / "mine_val.pth", rows, "transvg")


def test_odvg_lines_keep_sentences_without_a_target(tmp_path):
    write_layout(tmp_path / "e.odvg.jsonl", some(), "odvg")
    rows = [json.loads(line) for line in (tmp_path / "e.odvg.jsonl").read_text().splitlines()]
    assert [r["grounding"]["caption"] for r in rows] == ["the dog", "both dogs", "a unicorn"]
    assert rows[2]["grounding"]["regions"] == []
    assert [e.boxes for e in load_expressions(tmp_path / "e.odvg.jsonl")] == [BOXES[:1], BOXES, ()]
    masked = [Expression(1, 1, "a.jpg", "a", BOXES[:1], 9, 9, masks=([[0, 0, 1, 0, 1, 1]],))]
    with pytest.raises(UserError, match="cannot store masks"):
        write_layout(tmp_path / "m.odvg.jsonl", masked, "odvg")
    with pytest.raises(UserError, match="cannot store categories"):
        write_layout(tmp_path / "m.odvg.jsonl", [replace(e, category="x") for e in some()], "odvg")
    two = [*some(), Expression(9, 1, "a.jpg", "a", (), 9, 9, split="train")]
    with pytest.raises(UserError, match="the splits train, val"):
        write_layout(tmp_path / "m.odvg.jsonl", two, "odvg")
    (tmp_path / "bad.odvg.jsonl").write_text('{"filename": "a.jpg"}')
    with pytest.raises(UserError, match="line 1: not an ODVG"):
        odvg.read_odvg(tmp_path / "bad.odvg.jsonl")
    with pytest.raises(UserError, match="needs image sizes"):
        write_layout(tmp_path / "x.json", [Expression(1, 1, "a.jpg", "a", ())], "mdetr")


def test_transvg_files_run_nothing(tmp_path):
    torch.save(
        [("COCO_train2014_000000000007.jpg", 7, [1, 2, 10, 20], "the dog", [("r1", ["none"])])],
        tmp_path / "unc_val.pth",
    )
    (read,) = load_expressions(tmp_path / "unc_val.pth")
    assert (read.boxes, read.sentence, read.split) == (((1.0, 2.0, 11.0, 22.0),), "the dog", "val")
    torch.save([("1.jpg", [1, 2, 10, 20], "a dog")], tmp_path / "flickr_test.pth")
    assert load_expressions(tmp_path / "flickr_test.pth")[0].boxes == ((1.0, 2.0, 10.0, 20.0),)
    torch.save([("1.jpg", "x")], tmp_path / "gref_val.pth")
    with pytest.raises(UserError, match="entry 0 is no"):
        load_expressions(tmp_path / "gref_val.pth")
    torch.save([], tmp_path / "other_val.pth")
    with pytest.raises(UserError, match="does not name a TransVG data set"):
        load_expressions(tmp_path / "other_val.pth")


def test_layouts_are_recognised_by_content_whatever_the_name(tmp_path):
    rows = [replace(e, sentence=f"{e.sentence}\u2028{e.id}") for e in some()]
    for layout, names in {
        "jsonl": ("e.jsonl", "e.json", "e.txt"),
        "odvg": ("o.odvg.jsonl", "o.jsonl", "o.json"),
        "mdetr": ("m.json",),
        "refs": ("folder",),
    }.items():
        for name in names:
            write_layout(tmp_path / name, rows, layout)
            assert [(e.sentence, e.boxes) for e in load_expressions(tmp_path / name)] == [
                (e.sentence, e.boxes) for e in rows
            ], name
    (tmp_path / "one.json").write_text((tmp_path / "e.jsonl").read_text().splitlines()[1])
    assert [e.boxes for e in load_expressions(tmp_path / "one.json")] == [BOXES]
    # As some editors write them: with a byte order mark, and with an unescaped line separator in a sentence.
    row = json.dumps({"id": 1, "boxes": [], "sentence": "a\u2028b"}, ensure_ascii=False)
    (tmp_path / "bom.jsonl").write_text(row + "\r\n\r\n", encoding="utf-8-sig")
    assert [e.sentence for e in load_expressions(tmp_path / "bom.jsonl")] == ["a\u2028b"]
    (tmp_path / "d.jsonl").write_text('{"filename": "a.jpg", "detection": {"instances": []}}\n')
    with pytest.raises(UserError, match="classes instead of sentences"):
        load_expressions(tmp_path / "d.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="folder .* has no expressions"):
        load_expressions(tmp_path / "empty")
    (tmp_path / "folder/refs.json").unlink()
    assert len(load_expressions(tmp_path / "folder")) == 3
    (tmp_path / "folder/refs(other).p").write_bytes(b"")
    with pytest.raises(UserError, match=r"refs\(other\).p, refs\(own\).p: choose one"):
        load_expressions(tmp_path / "folder")
    with pytest.raises(UserError, match="No expression file"):
        load_expressions(tmp_path / "absent.pth")


def full_rows(full):
    """Sentences in the numbers of a full data set, with as many images and objects."""
    box, rows = ((0.0, 0.0, 1.0, 1.0),), []
    for split in full.splits:
        objects = full.objects.get(split, 1)
        # Enough sentences for all objects if the set's number of sentences is unknown.
        for n in range(full.sentences.get(split, objects + 1)):
            rows.append(
                Expression(
                    len(rows), n % full.images.get(split, 1), "a.jpg", "s", box, split=split, ann_ids=(n % objects,)
                )
            )
    return rows


@pytest.mark.parametrize("name", [n for n in FULL_SETS if n != "grefcoco-unc"])
def test_full_sets_are_counted(name):
    full = FULL_SETS[name]
    rows = full_rows(full)
    found = check_counts(name, rows)
    assert {s: found[s] for s in full.sentences} == full.sentences
    if full.sentences:
        lost = next(n for n, e in enumerate(rows) if e.split in full.sentences)
        with pytest.raises(UserError, match="These are not the sentences"):
            check_counts(name, rows[:lost] + rows[lost + 1 :])
    if full.images:
        with pytest.raises(UserError, match=f"images of train: {full.images['train'] + 1:,}"):
            check_counts(name, [replace(rows[0], image_id=-1), *rows[1:]])
        with pytest.raises(UserError, match=f"objects of train: {full.objects['train'] + 1:,}"):
            check_counts(name, [replace(rows[0], ann_ids=(-1,)), *rows[1:]])
        # Without object names they cannot be counted.
        assert check_counts(name, [replace(r, ann_ids=()) for r in rows]) == found


def test_sets_with_none_and_several_are_counted_as_a_whole():
    full = FULL_SETS["grefcoco-unc"]
    assert sum(full.targets.values()) == full.sentences["all"] == 278_232
    ids, rows = itertools.cycle(range(full.objects["all"])), []
    for several, count in enumerate(full.targets.values()):
        for _ in range(count):
            rows.append(
                Expression(
                    len(rows),
                    len(rows) % full.images["all"],
                    "a.jpg",
                    "s",
                    ((0.0, 0.0, 1.0, 1.0),) * several,
                    ann_ids=tuple(next(ids) for _ in range(several)),
                )
            )
    assert check_counts("grefcoco-unc", rows) == {"all": 278_232, **full.targets}
    with pytest.raises(UserError, match=r"with none target: 32,201 \(of 32,202\)"):
        check_counts("grefcoco-unc", rows[1:])
    with pytest.raises(UserError, match="has the splits train, val, testA, testB; the file has test"):
        check_counts("refcoco-unc", [Expression(1, 1, "a.jpg", "s", (), split="test")])


@given(
    st.integers(1, 10**6),
    st.sampled_from(
        [
            "{:012d}.jpg",
            "COCO_train2014_{:012d}.jpg",
            "train2017/{:012d}.jpg",
            "COCO_train2014_{:012d}_16.jpg",
            "http://x/val2017/{:012d}.jpg",
        ]
    ),
)
def test_one_image_has_one_key_in_every_file(number, form):
    assert image_key(form.format(number)) == f"coco:{number}"


def test_leaks_are_found_and_removed(tmp_path):
    coco = {
        "images": [{"id": n, "file_name": f"{n:012d}.jpg"} for n in (7, 8, 9)],
        "annotations": [{"id": n, "image_id": n, "bbox": [0, 0, 1, 1], "category_id": 1} for n in (7, 8, 9)],
        "categories": [{"id": 1, "name": "x"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(coco))
    training = training_images(tmp_path / "train.json")
    own_training = [Expression(9, 9, f"COCO_train2014_{9:012d}.jpg", "s", (), split="train")]
    (leak,) = find_leaks(training, "refcoco", some() + own_training)
    assert (leak.split, leak.images, leak.seen, leak.sentences) == ("val", 2, {"coco:7", "coco:8"}, 3)
    clean = without(coco, leak.seen)
    assert [i["id"] for i in clean["images"]] == [a["image_id"] for a in clean["annotations"]] == [9]
    captions = {"images": coco["images"], "annotations": [{"id": n, "image_id": n, "caption": "a"} for n in (7, 8, 9)]}
    assert without(captions, leak.seen) == {k: v[2:] for k, v in captions.items()}
    write_layout(tmp_path / "e.jsonl", some(), "jsonl")
    done = run(
        "tools/data/check_leakage.py",
        "--train",
        tmp_path / "train.json",
        "--bench",
        f"refcoco={tmp_path}/e.jsonl",
        "--clean",
        tmp_path / "clean.json",
        "--leaked",
        tmp_path / "leaked.txt",
        "--out",
        tmp_path / "out.json",
    )
    assert (tmp_path / "leaked.txt").read_text().split() == ["000000000007.jpg", "000000000008.jpg"]
    assert "2 training images occur in these splits" in done.stdout
    assert json.loads((tmp_path / "clean.json").read_text()) == clean
    (tmp_path / "names.txt").write_text("a.jpg 000000000007.jpg")
    assert set(training_images(tmp_path / "names.txt")) == {"a", "coco:7"}
    (tmp_path / "names.txt").write_text("x/1.jpg y/1.jpg")
    assert training_images(tmp_path / "names.txt") == {"1": ["x/1.jpg", "y/1.jpg"]}


def test_the_converter(tmp_path):
    write_layout(tmp_path / "e.jsonl", some(), "jsonl")
    done = run(
        "tools/data/convert_grounding.py", tmp_path / "e.jsonl", tmp_path / "m.json", "--to", "mdetr", "--split", "val"
    )
    assert "3 sentences, 1 without a target, 1 with several" in done.stdout
    assert len(load_expressions(tmp_path / "m.json")) == 3
    for more, message in ((["--split", "testC"], "It has: val"), (["--check", "refcoco-unc"], "not the sentences")):
        done = run("tools/data/convert_grounding.py", tmp_path / "e.jsonl", tmp_path / "m.json", *more, check=False)
        assert done.returncode == 2
        assert message in done.stderr


def test_real_expressions_there_and_back(shared, tmp_path):
    read = load_expressions(shared / "refcoco_testA_slice/refs(unc).p")
    write_layout(tmp_path / "back", read, "refs")
    again = load_expressions(tmp_path / "back/refs.json")
    assert [(e.id, e.sentence, e.boxes, e.split) for e in again] == [(e.id, e.sentence, e.boxes, e.split) for e in read]

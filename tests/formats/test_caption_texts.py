"""Captions that are not plain strings, other encodings, conversations by role, real-world folders and shards."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.captions import CaptionDataset
from smartclip_det.datasets.leakage import training_images
from smartclip_det.formats import captions
from smartclip_det.formats.caption_counts import REASONS, CaptionCounts, take_texts
from smartclip_det.formats.captions import read_caption_records
from smartclip_det.formats.conversations import answer_of
from smartclip_det.formats.texts import decode_text, is_text, read_text


def image_bytes(colour=(200, 30, 30), form="PNG"):
    out = io.BytesIO()
    Image.new("RGB", (20, 16), colour).save(out, form)
    return out.getvalue()


def write_json(path, content, encoding="utf-8"):
    path.write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    return path


def row(n, answer, **more):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": answer}]
    return {"id": n, "image": f"{n}.jpg", "conversations": turns, **more}


def coco(*texts):
    return {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(len(texts))],
        "annotations": [{"id": 10 + n, "image_id": n, "caption": t} for n, t in enumerate(texts)],
    }


def write_tar(path, *members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_marked_encodings_come_back(text, encoding):
    found = decode_text(text.encode(encoding))
    # A text that starts with its own byte order mark loses it in plain UTF-8.
    assert found == (text.removeprefix("\ufeff") if encoding == "utf-8" else text)
    assert is_text(found)


@given(st.text(st.characters(min_codepoint=0xC0, max_codepoint=0xFF), min_size=1, max_size=1), st.text("abc"))
def test_latin_1_is_never_taken_for_text(accent, rest):
    assert not is_text(decode_text(f"{rest}{accent} {rest}".encode("latin-1")))


def test_a_list_in_another_encoding_is_told_by_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"a.txt, line 2, is not UTF-8 text; iconv"):
        read_text(tmp_path / "a.txt", "list")
    (tmp_path / "a.txt").write_bytes("one\r\ncafé".encode("utf-16"))
    assert read_text(tmp_path / "a.txt", "list") == "one\ncafé"


@pytest.mark.parametrize(
    ("value", "texts", "reasons"),
    [
        ("a dog", ["a dog"], {}),
        (["a dog", ["two dogs"]], ["a dog", "two dogs"], {}),
        (["a", None, 7], ["a"], {"null_texts": 1, "number_texts": 1}),
        (float("nan"), [], {"null_texts": 1}),
        (True, [], {"number_texts": 1}),
        ({"en": "a dog"}, [], {"object_texts": 1}),
        (" NaN ", [], {"null_words": 1}),
        ("caf\udce9", [], {"not_utf8": 1}),
        ("a\0b", [], {"not_utf8": 1}),
        ("nan bread", ["nan bread"], {}),
        ("", [""], {}),
    ],
)
def test_what_is_no_text_is_never_spelled_out(value, texts, reasons):
    counts = CaptionCounts()
    assert take_texts(value, counts, "record 3") == texts
    assert {k: v for k, v in counts.items() if v} == reasons
    assert all(REASONS[r] in counts.table() and "first: record 3" in counts.table() for r in reasons)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
)


@given(json_values)
def test_no_value_gives_a_text_that_it_does_not_hold(value):
    def strings(v):
        return [v] if isinstance(v, str) else [t for part in v for t in strings(part)] if isinstance(v, list) else []

    assert set(take_texts(value, CaptionCounts(), "x")) <= set(strings(value))


@pytest.mark.parametrize(
    "turns",
    [
        [("system", "You describe."), ("human", "What?"), ("gpt", "A dog.")],
        [("user", "What?"), ("assistant", "A dog.")],
        [("Human", "What?"), ("GPT-4V", "A dog.")],
        [("gpt", "Hello!"), ("human", "What?"), ("gpt", "A dog.")],
        [("USER:", "What?"), ("ASSISTANT:", "A dog."), ("user", "Where?"), ("assistant", "There.")],
        [("", "What?"), ("", "A dog.")],
    ],
)
@pytest.mark.parametrize(("who", "what"), [("from", "value"), ("role", "content")])
def test_the_answer_is_found_by_its_role(turns, who, what):
    counts = CaptionCounts()
    assert answer_of([{who: r, what: t} for r, t in turns], counts, "x") == ["A dog."]
    assert counts.get("later_answers", 0) == (len(turns) == 4)


@pytest.mark.parametrize(
    "turns",
    [
        [("human", "What?")],
        [("human", "What?"), ("narrator", "A dog.")],
        [("", "a"), ("", "b"), ("", "c")],
        [("gpt", "Hello!"), ("human", "What?")],
        [],
        "text",
        None,
        ["What?", "A dog."],
    ],
)
def test_a_conversation_without_an_answer_gives_none(turns):
    counts = CaptionCounts()
    if isinstance(turns, list):
        turns = [{"from": t[0], "value": t[1]} if isinstance(t, tuple) else t for t in turns]
    assert answer_of(turns, counts, "record 5") == []
    assert (counts["no_answer"], "record 5" in counts.first["no_answer"]) == (1, True)


def test_parts_of_chat_services_are_read():
    parts = [{"type": "image_url", "image_url": "x"}, {"type": "text", "text": "A dog."}]
    assert answer_of(
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": parts}], CaptionCounts(), "x"
    ) == ["A dog."]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_conversations_are_counted_by_reason(tmp_path, monkeypatch, stream, encoding):
    rows = [
        row(0, "A dog é."),
        row(1, None),
        row(2, ["one", "two"]),
        row(3, "x", short=["s", None, " "]),
        {**row(4, "A cat."), "image": None},
        {**row(5, "A cat."), "image": ["a.jpg", "b.jpg"]},
        {**row(6, "A cat."), "conversations": [{"from": "critic", "value": "bad"}]},
        row(7, "A dog."),
        {**row(7, "A cow."), "image": "./7.jpg"},
        row(7, "A dog."),
        {**row(8, "A cat."), "image": ["8.jpg"]},
        {"image": "9.jpg", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "m"}]},
    ]
    path = write_json(tmp_path / "rows.json", rows, encoding)
    if stream:
        monkeypatch.setattr(captions, "_STREAM_BYTES", 10)
    records, counts = read_caption_records(path)
    assert [(r.image, r.long, r.short) for r in records] == [
        ("0.jpg", "A dog é.", []),
        ("2.jpg", "", ["one", "two"]),
        ("3.jpg", "x", ["s"]),
        ("7.jpg", "A dog.", []),
        ("./7.jpg", "A cow.", []),
        ("7.jpg", "A dog.", []),
        ("8.jpg", "A cat.", []),
        ("9.jpg", "m", []),
    ]
    assert counts == {
        "records": 12,
        "without_caption": 2,
        "null_texts": 2,
        "blank_texts": 1,
        "no_image": 1,
        "several_images": 1,
        "no_answer": 1,
        "repeated_images": 1,
        "repeated_records": 1,
    }
    assert "record 1 (id 1)" in counts.first["null_texts"]
    assert "critic" in counts.first["no_answer"]


def test_a_name_of_an_image_that_is_none_is_refused(tmp_path):
    for image in (7, {"path": "a.jpg"}, "\udce9.jpg"):
        (tmp_path / "a.json").write_text(json.dumps([{**row(3, "A cat."), "image": image}]))
        with pytest.raises(UserError, match=r"a.json: record 0 \(id 3\) has no valid image name"):
            read_caption_records(tmp_path / "a.json")


def test_coco_captions_that_are_no_text(tmp_path):
    path = write_json(tmp_path / "c.json", coco("one", None, 7, ["a", "b"], {"en": "x"}, "  ", "two"))
    records, counts = read_caption_records(path)
    assert [r.short for r in records] == [["one"], ["a", "b"], ["two"]]
    assert counts == {"records": 7, "without_caption": 4, "null_texts": 1, "number_texts": 1, "object_texts": 1}
    assert counts.first["null_texts"] == "annotation 1 (id 11, image_id 1)"
    write_json(path, coco(None))
    with pytest.raises(
        UserError, match=r"c.json has no image with a non-blank caption(.|\n)*annotation 0 \(id 10, image_id 0\)"
    ):
        read_caption_records(path)


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([{"id": 1}], [], r"lacks 'file_name' in images\[0\]"),
        ([{"id": 1, "file_name": None}], [], r"images\[0\] \(id 1\) has no valid image name"),
        ([{"id": [1], "file_name": "a.jpg"}], [], r"images\[0\] has \[1\] for id"),
        (None, [], "lacks 'images'"),
        ([{"id": 1, "file_name": "a.jpg"}], ["x"], r"lacks 'image_id' in annotations\[0\]"),
        ([{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}], [], "a.jpg and b.jpg share the id 1"),
    ],
)
def test_coco_entries_that_lack_what_is_needed(tmp_path, images, annotations, message):
    with pytest.raises(UserError, match=message):
        read_caption_records(write_json(tmp_path / "c.json", {"images": images, "annotations": annotations}), "coco")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_of_any_unicode_encoding(tmp_path, encoding):
    write_json(tmp_path / "c.json", coco("café 🐕"), encoding)
    assert read_caption_records(tmp_path / "c.json")[0][0].short == ["café 🐕"]
    assert set(training_images(tmp_path / "c.json")) == {"0"}


def test_latin_1_inside_json_is_told_by_record(tmp_path):
    write_json(tmp_path / "c.json", coco("un chien", "un café"), "latin-1")
    records, counts = read_caption_records(tmp_path / "c.json")
    assert [r.short for r in records] == [["un chien"]]
    assert counts.first["not_utf8"] == "annotation 1 (id 11, image_id 1)"


def test_folders_as_people_have_them(tmp_path):
    files = {
        "1.jpg": "one",
        "2.tif": "first\nsecond\n",
        "3.gif": "A paragraph\nthat goes on.\n\nAnother.",
        "4.JPEG": "four",
        "5.heic": "not read",
        "6.txt": "",
        "7.png": "café".encode("latin-1"),
        "8.png": "\ufeffeight".encode("utf-16-le"),
        "9.png": "\ufeffnine".encode(),
        "sub/1.webp": "one below",
    }
    for name, text in files.items():
        path = tmp_path / "p" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        if path.suffix != ".txt":
            form = {".jpg": "JPEG", ".tif": "TIFF", ".gif": "GIF", ".webp": "WEBP"}.get(path.suffix, "PNG")
            path.write_bytes(image_bytes(form=form))
        path.with_suffix(".txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    for debris in (".ipynb_checkpoints/1-checkpoint.jpg", "__MACOSX/1.jpg", "._1.jpg"):
        (tmp_path / "p" / debris).parent.mkdir(exist_ok=True)
        (tmp_path / "p" / debris).write_bytes(b"x")
    (tmp_path / "p/1.png").write_bytes(image_bytes())
    records, counts = read_caption_records(tmp_path / "p")
    assert [(r.id, r.long, r.short) for r in records] == [
        ("1.jpg", "one", []),
        ("1.png", "one", []),
        ("2.tif", "", ["first", "second"]),
        ("3.gif", "A paragraph\nthat goes on.\n\nAnother.", []),
        ("4.JPEG", "four", []),
        ("8.png", "eight", []),
        ("9.png", "nine", []),
        ("sub/1.webp", "one below", []),
    ]
    assert counts == {
        "records": 9,
        "without_caption": 1,
        "not_utf8": 1,
        "hidden_files": 5,
        "other_endings": 1,
        "texts_without_image": 1,
        "lines_as_captions": 1,
        "shared_texts": 1,
    }
    assert counts.first["other_endings"] == "5.heic"
    data = CaptionDataset(str(tmp_path / "p"), images={"size": 16})
    assert all(data.image(n).shape == (3, 16, 16) for n in range(8))


def test_members_of_one_name_are_kept_apart_or_refused(tmp_path):
    red, blue = image_bytes(), image_bytes((0, 0, 250))
    twice = write_tar(
        tmp_path / "twice.tar",
        ("1.png", red),
        ("1.txt", b"red"),
        ("1.png", blue),
        ("1.txt", b"blue"),
        ("__MACOSX/._1.png", b"x"),
        ("./2.png", red),
        ("./2.txt", b"again"),
    )
    records, counts = read_caption_records(twice)
    assert [(r.long, len({r.image for r in records})) for r in records] == [("red", 3), ("blue", 3), ("again", 3)]
    assert {k: counts[k] for k in ("repeated_keys", "hidden_files")} == {"repeated_keys": 1, "hidden_files": 1}
    data = CaptionDataset(str(twice), images={"size": 8})
    assert [data.image(n)[:, 0, 0].tolist() for n in (0, 1)] == [[200, 30, 30], [0, 0, 250]]
    for order in (("1.png", "1.png", "1.txt", "1.txt"), ("1.png", "1.txt", "2.png", "2.txt", "1.txt")):
        mixed = write_tar(tmp_path / "mixed.tar", *((n, red) for n in order))
        with pytest.raises(UserError, match="sample '1' has repeated member names"):
            read_caption_records(mixed)


@pytest.mark.parametrize(
    ("member", "content", "texts", "reason"),
    [
        ("json", b'{"caption": ["a dog", "two dogs"]}', ["a dog", "two dogs"], None),
        ("json", b'["a dog"]', ["a dog"], None),
        ("json", b'{"caption": {"en": "a dog"}}', [], "object_texts"),
        ("json", b'{"caption": NaN}', [], "null_texts"),
        ("json", b'{"url": "x"}', [], "no_caption_key"),
        ("json", b'{"long": null, "caption": "c", "short": ["s", 3]}', ["c", "s"], "number_texts"),
        ("json", '{"caption": "un café"}'.encode("latin-1"), [], "not_utf8"),
        ("txt", "un café".encode("latin-1"), [], "not_utf8"),
        ("json", '{"caption": "un café"}'.encode("utf-16"), ["un café"], None),
        ("txt", b"one\r\ntwo\r\n", ["one", "two"], "lines_as_captions"),
    ],
)
def test_texts_of_shards(tmp_path, member, content, texts, reason):
    shard = write_tar(
        tmp_path / "s.tar",
        ("k/1.png", image_bytes()),
        (f"k/1.{member}", content),
        ("k/2.png", image_bytes()),
        ("k/2.txt", b"the other"),
    )
    records, counts = read_caption_records(shard)
    mine = [t for r in records if r.id == "k/1" for t in ([r.long] if r.long else []) + r.short]
    assert mine == texts
    assert counts["without_caption"] == (not texts)
    assert [k for k, v in counts.items() if v and k not in ("records", "without_caption")] == (
        [reason] if reason else []
    )
    if reason:
        assert counts.first[reason].startswith("s.tar: sample 'k/1'")


def test_a_damaged_index_of_a_shard_is_made_anew(tmp_path):
    shard = write_tar(tmp_path / "s.tar", ("1.png", image_bytes()), ("1.txt", b"a"))
    for content in ("[]", "{", "null"):
        (tmp_path / "s.tar.index.json").write_text(content)
        assert len(read_caption_records(shard)[0]) == 1


def test_training_says_at_its_start_what_is_left_out(tmp_path, monkeypatch):
    path = write_json(tmp_path / "rows.json", [row(0, "A dog."), row(1, None), row(2, 4), row(0, "A dog.")])
    told = []
    monkeypatch.setattr("smartclip_det.datasets.captions.print_log", lambda text, _: told.append(text))
    CaptionDataset(str(path))
    assert told[0].startswith("rows.json: 2 images with captions, of 4 records.")
    for reason in ("without_caption", "null_texts", "number_texts", "repeated_records"):
        assert REASONS[reason] in told[0]


def test_leakage_reads_the_names_inside_shards_and_tells(tmp_path):
    write_tar(
        tmp_path / "s.tar",
        ("COCO_train2014_000000000007.png", image_bytes()),
        ("COCO_train2014_000000000007.txt", b"a"),
        ("2.png", image_bytes()),
        ("2.json", b'{"caption": null}'),
    )
    told = []
    assert set(training_images(tmp_path / "s.tar", told.append)) == {"coco:7"}
    assert "1 images with captions, of 2 records" in told[0]
    (tmp_path / "names.txt").write_bytes("\ufeffmy photo.jpg\r\na/b.png".encode())
    assert set(training_images(tmp_path / "names.txt")) == {"my photo", "b"}

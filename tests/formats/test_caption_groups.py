"""Several records of one image are one image; long and short captions are selected as requested."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.formats.caption_groups import by_image, open_source
from smartclip_det.formats.caption_sets import load_captions
from smartclip_det.formats.captions import CaptionRecord
from smartclip_det.formats.retrieval_vectors import RetrievalVectors

COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220), "green": (20, 200, 20)}


@pytest.fixture
def folder(tmp_path):
    for name, colour in COLOURS.items():
        Image.new("RGB", (16, 12), colour).save(tmp_path / f"{name}.png")
    return tmp_path


def conversation(text):
    return [{"from": "human", "value": "q"}, {"from": "gpt", "value": text}]


def write_rows(path, rows):
    path.write_text(
        json.dumps(
            [{"id": n, "image": i, "conversations": conversation(t), **more} for n, (i, t, more) in enumerate(rows)]
        )
    )
    return path


def test_rows_of_one_image_are_what_grouped_captions_are(folder):
    rows = [(f"{c}.png", f"a {c} square {n}", {}) for k, c in enumerate(COLOURS) for n in range(k + 2)]
    data = {
        "images": [{"id": k, "file_name": f"{c}.png"} for k, c in enumerate(COLOURS)],
        "annotations": [{"image_id": list(COLOURS).index(i[:-4]), "caption": t} for i, t, _ in rows],
    }
    (folder / "coco.json").write_text(json.dumps(data))
    told = []
    ours, facts = load_captions(write_rows(folder / "rows.json", rows), tell=told.append)
    theirs, _ = load_captions(folder / "coco.json")
    assert [(i.path, i.texts) for i in ours] == [(i.path, i.texts) for i in theirs]
    assert (facts["images"], facts["texts"], facts["repeated_images"]) == (3, 9, 6)
    assert "an image of an earlier record" in told[0]
    assert told[1] == "3 different images of 9 records; all texts: 9 (9 long, 0 short)"


def test_a_picture_under_another_name_is_the_same(folder):
    (folder / "sub").mkdir()
    (folder / "sub/copy.png").write_bytes((folder / "red.png").read_bytes())
    padded = (folder / "red.png").read_bytes()
    (folder / "blue.png").write_bytes(padded[:-1] + bytes([padded[-1] ^ 1]))
    rows = [("red.png", "red", {}), ("sub/copy.png", "ruby", {}), ("blue.png", "not red", {}), ("./red.png", "red", {})]
    found, facts = load_captions(write_rows(folder / "rows.json", rows))
    assert [(i.id, i.path.name, i.texts) for i in found] == [
        ("0", "red.png", ("red", "ruby")),
        ("2", "blue.png", ("not red",)),
    ]
    assert facts["joined_ids"] == ["1"]
    check = RetrievalVectors(
        torch.zeros(2, 3), torch.zeros(3, 3), torch.tensor([0, 0, 1]), None, ["0", "2"], ["a", "b", "c"], facts
    )
    check.check_against(folder / "rows.json")
    check.stamp = {}
    with pytest.raises(UserError, match="1 of 3 images of .* have no vectors"):
        check.check_against(folder / "rows.json")


def test_long_and_short_texts_are_taken_as_asked_for(folder):
    rows = [
        ("red.png", "long red", {"short": ["r1", "r2", "long red"]}),
        ("blue.png", "long blue", {"short": "b"}),
        ("green.png", "long green", {}),
    ]
    path = write_rows(folder / "rows.json", rows)
    expected = {
        "all": (["long red", "r1", "r2"], 3, 3, 4),
        "long": (["long red"], 3, 3, 0),
        "short": (["r1", "r2", "long red"], 2, 0, 4),
    }
    for which, (first, images, long, short) in expected.items():
        found, facts = load_captions(path, which=which)
        assert (list(found[0].texts), len(found)) == (first, images)
        assert (facts["texts_taken"], facts["long_texts"], facts["short_texts"]) == (which, long, short)
        assert facts.get("images_without_short") == (1 if which == "short" else None)
        own = [i for i in found for _ in i.texts]
        rows_of = torch.tensor([[i.id for i in found].index(i.id) for i in own])
        RetrievalVectors(
            torch.zeros(images, 3),
            torch.zeros(len(own), 3),
            rows_of,
            None,
            [i.id for i in found],
            ["t"] * len(own),
            facts,
        ).check_against(path)
    write_rows(path, rows[2:])
    with pytest.raises(UserError, match="has no short captions; it has long ones"):
        load_captions(path, which="short")
    with pytest.raises(UserError, match="texts='shrt'"):
        load_captions(path, which="shrt")


def test_images_of_shards_and_those_that_are_absent(folder):
    with tarfile.open(folder / "s.tar", "w") as archive:
        for name, content in (
            ("1.png", (folder / "red.png").read_bytes()),
            ("1.txt", b"red"),
            ("2.png", (folder / "red.png").read_bytes()),
            ("2.txt", b"ruby"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    (image,), _ = load_captions(folder / "s.tar")
    assert image.texts == ("red", "ruby")
    assert np.array_equal(np.array(open_source(image.path)), np.array(Image.open(folder / "red.png")))
    with pytest.raises(UserError, match="1 of 2 images do not exist, e.g. .*nowhere.png"):
        load_captions(write_rows(folder / "r.json", [("nowhere.png", "x", {}), ("red.png", "y", {})]))


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.sampled_from(["x.png", "./x.png", "d/x.png"]),
            st.text("pq", max_size=2),
            st.lists(st.text("pq", min_size=1, max_size=2), max_size=3),
        ),
        max_size=8,
    )
)
def test_grouping_keeps_every_text_and_ids_apart(rows):
    records = [CaptionRecord(i, image, long, short) for i, image, long, short in rows]
    found = by_image(records)
    assert len({i.id for i in found}) == len(found) == len({r.image.removeprefix("./") for r in records})
    for image in found:
        mine = [r for r in records if r.image.removeprefix("./") == image.image.removeprefix("./")]
        assert set(image.texts("all")) == {t for r in mine for t in [r.long, *r.short] if t}
        assert len(set(image.texts("all"))) == len(image.texts("all"))

"""Captions generated from scenes: allowed contents, their amount, and the schedule."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.captions import CaptionDataset
from smartclip_det.datasets.scene_captions import SceneCaptions, Speech, draw_caption
from smartclip_det.datasets.toy_world import ToyWorld, WorldConfig, write_world

OBJECTS = [
    {"shape": "heart", "colour": "red", "texture": "plain", "size": "small"},
    {"shape": "arrow", "colour": "orange", "texture": "striped", "size": "large"},
    {"shape": "ring", "colour": "blue", "texture": "dotted", "size": "medium"},
]
SAID = {"heart": "small red heart", "arrow": "large striped orange arrow", "ring": "medium dotted blue ring"}
chance = st.sampled_from([0.0, 0.3, 1.0])


@settings(max_examples=60, deadline=None)
@given(any_subset=chance, colour=chance, size=chance, texture=chance, seed=st.integers(0, 10_000))
def test_a_caption_names_different_objects_with_words_of_their_own(any_subset, colour, size, texture, seed):
    speech = Speech(any_subset, colour, size, texture)
    parts = draw_caption(OBJECTS, speech, np.random.default_rng(seed)).split(" and ")
    shapes = [p.split()[-1] for p in parts]
    assert len(set(shapes)) == len(shapes) <= (3 if any_subset else 2)
    for part, shape in zip(parts, shapes, strict=True):
        article, *words = part.split()
        assert article == ("an" if words[0][0] in "aeiou" else "a")
        allowed = SAID[shape].split()
        assert words == [w for w in allowed if w in words]
        chances = {"red": colour, "orange": colour, "blue": colour, "striped": texture, "dotted": texture}
        for word in allowed[:-1]:
            expected = chances.get(word, size)
            assert (word in words) == bool(expected) or expected == 0.3


def test_how_much_is_said_follows_the_chances():
    rng = np.random.default_rng(0)
    captions = [draw_caption(OBJECTS, Speech(0.5, 0.6, 0.3, 0.0), rng) for _ in range(4000)]
    parts = [p for c in captions for p in c.split(" and ")]
    colours = np.mean([any(w in p for w in ("red", "orange", "blue")) for p in parts])
    sizes = np.mean([any(w in p for w in ("small", "large", "medium")) for p in parts])
    assert colours == pytest.approx(0.6, abs=0.03)
    assert sizes == pytest.approx(0.3, abs=0.03)
    # Half of the captions mention one or two objects, half one to three.
    counts = np.bincount([len(c.split(" and ")) for c in captions], minlength=4)[1:] / len(captions)
    assert counts == pytest.approx([5 / 12, 5 / 12, 1 / 6], abs=0.03)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_world(ToyWorld(WorldConfig(train=16, val=2, test=2)), root, progress=False)
    return root


def dataset(world, **scenes):
    options = {"file": "annotations/scenes_train.json", **scenes}
    return CaptionDataset(
        "annotations/share_captions_train.json",
        data_root=str(world),
        images={"size": 64, "fit": "pad"},
        texts={"per_image": 2},
        scenes=options,
    )


def test_captions_hold_in_their_picture_and_depend_on_seed_epoch_and_index_alone(world):
    data = dataset(world, start={"any_subset": 1.0, "colour": 1.0, "size": 1.0, "texture": 1.0})
    scenes = {s["id"]: s["objects"] for s in json.loads((world / "annotations/scenes_train.json").read_text())}
    drawn = {}
    for epoch in (0, 1):
        for i in range(16):
            sample = data[epoch * 16 + i]["data_samples"]
            told = {
                " ".join(w for w in (o["size"], o["texture"], o["colour"], o["shape"]) if w != "plain")
                for o in scenes[sample.img_id]
            }
            for caption in sample.drawn_captions:
                assert {p.split(" ", 1)[1] for p in caption.split(" and ")} <= told
            drawn[epoch, i] = sample.drawn_captions
    assert any(drawn[0, i] != drawn[1, i] for i in range(16))
    again = dataset(world, start={"any_subset": 1.0, "colour": 1.0, "size": 1.0, "texture": 1.0})
    again.set_epoch(1)
    assert [again[i]["data_samples"].drawn_captions for i in range(16)] == [drawn[1, i] for i in range(16)]


def test_more_is_said_as_pictures_go_by():
    speaker = SceneCaptions("absent.json", start={"colour": 0.0}, end={"colour": 1.0, "any_subset": 1.0}, ramp=1000)

    def share(seen):
        rng = np.random.default_rng(1)
        said = [p for _ in range(500) for p in speaker.draw(OBJECTS, seen, rng).split(" and ")]
        return np.mean([any(w in p for w in ("red", "orange", "blue")) for p in said])

    assert share(0) == 0
    assert share(500) == pytest.approx(0.5, abs=0.08)
    assert share(1000) == share(5000) == 1


def test_bad_options_and_files_say_what_is_wrong(world, tmp_path):
    with pytest.raises(UserError, match=r"probability in \[0, 1\]; given 1.5"):
        SceneCaptions("x", start={"colour": 1.5})
    with pytest.raises(UserError, match="colour"):
        SceneCaptions("x", end={"color": 0.5})
    with pytest.raises(UserError, match="must be a number of images"):
        SceneCaptions("x", ramp=-1)
    for content, match in (
        ([{"objects": []}], "is not a scene"),
        ([{"id": 1, "objects": [{"shape": "x"}]}], "needs colour"),
        ([{"id": -1, "objects": OBJECTS}], "matched by image id"),
    ):
        (tmp_path / "s.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=match):
            dataset(world, file=str(tmp_path / "s.json"))


def test_a_data_set_brings_the_truth_of_its_captions(world):
    found = CaptionDataset(
        "annotations/share_captions_train.json",
        data_root=str(world),
        images={"size": 64, "fit": "pad"},
        tests={"truth": "annotations/scenes_train.json"},
        test_mode=True,
    )
    samples = [found[n]["data_samples"] for n in range(len(found))]
    captions = [(n, c) for n, s in enumerate(samples) for kind in s.captions.values() for c in kind]
    table = found.metainfo["truth"].table([c for _, c in captions], [s.img_id for s in samples])
    assert all(row[n] for row, (n, _) in zip(table, captions, strict=True))
    assert not table.all()

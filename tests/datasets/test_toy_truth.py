"""Whether a caption matches a scene."""

from __future__ import annotations

import json
from itertools import permutations

import numpy as np
import pytest

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.caption_policies import partial_caption
from smartclip_det.datasets.scene_captions import Speech, draw_caption
from smartclip_det.datasets.toy_world import ToyWorld, WorldConfig
from smartclip_det.datasets.toy_world.language import long_caption, scene_facts, short_captions
from smartclip_det.datasets.toy_world.truth import SceneTruth, read_claims


def thing(words, place="in the left part", hidden=False):
    size, texture, colour, shape = words.split()
    return {"shape": shape, "colour": colour, "texture": texture, "size": size, "place": place, "hidden": hidden}


SCENES = {
    "two drops": {
        "background": "pale",
        "grey": False,
        "objects": [
            thing("small plain red drop"),
            thing("large striped blue drop", "in the upper left part", hidden=True),
        ],
    },
    "bound wrongly": {
        "background": "dim",
        "grey": False,
        "objects": [thing("small plain red heart"), thing("small plain blue drop", "in the middle")],
    },
    "grey": {"background": "pale", "grey": True, "objects": [thing("medium dotted white arrow")]},
    "empty": {"background": "pale", "grey": False, "objects": []},
}
TWO, BOUND, GREY, EMPTY = SCENES


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a drop", {TWO, BOUND}),
        ("a red drop", {TWO}),
        ("a small blue drop", {BOUND}),
        ("a large blue drop", {TWO}),
        ("a striped blue drop", {TWO}),
        ("a dotted arrow", {GREY}),
        ("an arrow", {GREY}),
        ("a red arrow", set()),
        ("a drop and a drop", {TWO}),
        ("a red drop and a drop", {TWO}),
        ("a drop and a red drop", {TWO}),
        ("a red drop and a small drop", set()),
        ("a blue drop and a red heart", {BOUND}),
        ("a drop and a drop and a drop", set()),
        ("an empty pale background", {EMPTY}),
        ("an empty dim background", set()),
        ("The picture shows two shapes on a pale background.", {TWO}),
        ("The picture shows two shapes on a dim background.", {BOUND}),
        ("The picture shows one shape on a pale background.", {GREY}),
        ("The black and white picture shows one shape on a pale background.", {GREY}),
        ("The black and white picture shows two shapes on a pale background.", set()),
        ("The picture shows no shapes on a pale background.", {EMPTY}),
        ("There is a small red drop in the left part.", {TWO}),
        ("There is a small red drop in the left part, partly hidden.", set()),
        ("There is a large striped blue drop in the upper left part, partly hidden.", {TWO}),
        ("There is a large striped blue drop in the upper left part.", {TWO}),
        ("There is a large striped blue drop in the left part.", set()),
        ("There is a small blue drop in the middle. The picture shows two shapes on a dim background.", {BOUND}),
        ("There is a small blue drop in the middle. The picture shows two shapes on a pale background.", set()),
        ("There is a small red drop in the left part. There is a small red drop in the left part.", set()),
    ],
)
def test_captions_of_scenes_made_by_hand(caption, expected):
    ids = list(reversed(SCENES))
    (told,) = SceneTruth(SCENES).table([caption], ids)
    assert {i for i, t in zip(ids, told, strict=True) if t} == expected


@pytest.mark.parametrize(
    "text",
    [
        "a mauve drop",
        "a drop and",
        "the red drop",
        "a plain drop",
        "a red small drop",
        "There is a red drop.",
        "",
        "The picture shows six shapes on a pale background.",
        "a drop or a heart",
    ],
)
def test_what_the_world_never_says_is_refused(text):
    with pytest.raises(UserError, match="is not a sentence of the toy world|empty caption"):
        SceneTruth(SCENES).table(["a drop", text], list(SCENES))


def test_pictures_without_a_scene_are_refused():
    with pytest.raises(UserError, match="1 of 2 images have no scene, e.g. 'x'"):
        SceneTruth(SCENES).table(["a drop"], [TWO, "x"])


@pytest.fixture(scope="module")
def told():
    """Facts of small scenes, and all captions generated for each."""
    world = ToyWorld(WorldConfig(seed=3, val=60, side=64))
    facts, captions, rng = {}, {}, np.random.default_rng(0)
    for index in range(60):
        scene = world.scene("val", index)
        facts[index] = scene_facts(scene)
        long = long_caption(scene)
        captions[index] = [long, *short_captions(scene), *(partial_caption(long, rng) for _ in range(3))]
        if scene.objects:
            captions[index] += [draw_caption(facts[index]["objects"], Speech(1, 0.6, 0.5, 0.5), rng) for _ in range(3)]
    return facts, captions


def test_every_caption_is_true_of_its_own_picture(told):
    facts, captions = told
    texts = [(index, c) for index, mine in captions.items() for c in mine]
    table = SceneTruth(facts).table([c for _, c in texts], list(facts))
    for row, (index, caption) in zip(table, texts, strict=True):
        assert row[index], caption
    assert table.mean() < 0.2


def test_truth_is_that_of_trying_every_order_of_the_objects(told):
    facts, captions = told

    def holds(caption, scene):
        claims = read_claims(caption)
        facts = {**scene, "number": len(scene["objects"])}
        if any(facts[k] != v for k, v in claims.scene):
            return False
        orders = permutations(scene["objects"], len(claims.things))
        return any(
            all(all(o[k] == v for k, v in t) for t, o in zip(claims.things, order, strict=True)) for order in orders
        )

    texts = sorted({c for mine in captions.values() for c in mine})
    several = [t for t in texts if t.count(" and ") or t.count("There is") > 1]
    assert len(several) > 50
    table = SceneTruth(facts).table(texts, list(facts))
    assert table.tolist() == [[holds(t, facts[i]) for i in facts] for t in texts]


def test_scene_files_that_lack_facts_are_named(tmp_path):
    path = tmp_path / "scenes.json"
    path.write_text(json.dumps([{"id": n, **s} for n, s in enumerate(SCENES.values())]))
    assert SceneTruth.read(path).table(["a heart"], [0, 1, 2, 3]).tolist() == [[False, True, False, False]]
    bare = {"shape": "drop", "colour": "red", "texture": "plain", "size": "small"}
    for content, match in (
        ([{"id": 1, "background": "pale", "objects": []}], "lacks grey"),
        ([{"id": 1, "background": "pale", "grey": False, "objects": [bare]}], "lacks hidden, place.*make-toy"),
        ([{"id": 1, **SCENES[TWO]}, {"id": 1, **SCENES[GREY]}], "comes twice"),
        ({"id": 1}, "a list of scenes"),
        ([3], "entry 0 is not a scene"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=match):
            SceneTruth.read(path)

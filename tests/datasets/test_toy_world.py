"""The toy world through the real dataset classes and readers."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.toy_world import ToyWorld, WorldConfig, write_world
from smartclip_det.datasets.toy_world.language import expressions, long_caption, short_captions
from smartclip_det.datasets.toy_world.shapes import BASE_SHAPES, COLOURS, NOVEL_SHAPES, SHAPES, shape_coverage
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.expressions.loading import load_expressions
from smartclip_det.formats.predictions import check_predictions
from smartclip_det.metrics.coco import evaluate_tables
from smartclip_det.metrics.lvis import evaluate_lvis

SMALL = WorldConfig(seed=1, train=120, val=40, test=20, side=96)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    write_world(ToyWorld(SMALL), root, progress=False)
    return root


def test_same_seed_same_bytes_and_another_seed_another_world(folder, tmp_path):
    write_world(ToyWorld(SMALL), tmp_path, progress=False)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert len(files) == 120 + 40 + 20 + 20 + 4 * 5 + 2 + 2 + 2
    for name in files:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name
    other = ToyWorld(WorldConfig(seed=2, train=120, val=40, test=20, side=96))
    assert not np.array_equal(other.scene("val", 0).image, ToyWorld(SMALL).scene("val", 0).image)
    # A scene depends only on its index, not on earlier scenes.
    assert np.array_equal(ToyWorld(SMALL).scene("train", 77).image, ToyWorld(SMALL).scene("train", 77).image)


def test_boxes_and_masks_are_exact_and_visible():
    world = ToyWorld(SMALL)
    seen = 0
    for index in range(40):
        scene = world.scene("train", index)
        for k, o in enumerate(scene.objects):
            rows, columns = np.nonzero(o.mask)
            assert o.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert o.visible >= 0.5
            assert all(not (o.mask & p.mask).any() for p in scene.objects[k + 1 :])
            seen += 1
    assert seen > 60


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_fills_its_place_and_differs_from_the_others(shape):
    mine = shape_coverage(shape, (64, 64), (32, 32), 20) >= 0.5
    assert 150 < mine.sum() < 1700
    rows, columns = np.nonzero(mine)
    assert max(rows.max() - rows.min(), columns.max() - columns.min()) >= 18
    for other in SHAPES:
        if other != shape:
            theirs = shape_coverage(other, (64, 64), (32, 32), 20) >= 0.5
            assert (mine & theirs).sum() / (mine | theirs).sum() < 0.95, other


def test_novel_shapes_have_captions_and_no_training_box(folder):
    data = json.loads((folder / "annotations/instances_train.json").read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    assert {names[a["category_id"]] for a in data["annotations"]} <= set(BASE_SHAPES)
    assert set(names.values()) == set(SHAPES)
    said = " ".join(
        r["conversations"][1]["value"]
        for r in json.loads((folder / "annotations/share_captions_train.json").read_text())
    )
    assert all(s in said for s in NOVEL_SHAPES)
    val = json.loads((folder / "annotations/instances_val.json").read_text())
    assert {names[a["category_id"]] for a in val["annotations"]} & set(NOVEL_SHAPES)
    assert json.loads((folder / "annotations/split.json").read_text()) == {
        "base": list(BASE_SHAPES),
        "novel": list(NOVEL_SHAPES),
    }


def test_held_out_pairs_are_nowhere_in_training(folder):
    world = ToyWorld(SMALL)
    assert len(world.held_out_pairs) == 36
    rows = json.loads((folder / "annotations/share_captions_train.json").read_text())
    text = " ".join(t for r in rows for t in (r["conversations"][1]["value"], *r["short"]))
    for colour, shape in world.held_out_pairs:
        assert not re.search(rf"\b{colour} {shape}\b", text)
    for index in range(SMALL.train):
        assert not {o.pair for o in world.scene("train", index).objects} & world.held_out_pairs


@pytest.mark.parametrize("count", [0, 1, 12, 36, 63])
def test_held_out_pairs_leave_every_shape_and_colour_alike(count):
    for seed in range(3):
        pairs = ToyWorld(WorldConfig(seed=seed, held_out=count)).held_out_pairs
        assert len(pairs) == count
        assert not {c for c, _ in pairs} & {"black", "gray", "white"}
        for counts in (Counter(dict.fromkeys(SHAPES, 0)), Counter(dict.fromkeys(list(COLOURS)[:7], 0))):
            for pair in pairs:
                counts.update(set(pair) & set(counts))
            assert max(counts.values()) - min(counts.values()) <= 1
    if count:
        assert pairs != ToyWorld(WorldConfig(seed=0, held_out=count)).held_out_pairs


def test_test_splits_hold_base_and_novel_targets():
    world = ToyWorld(SMALL)
    for split, shapes in (("testA", BASE_SHAPES), ("testB", NOVEL_SHAPES)):
        assert all(o.shape in shapes for i in range(20) for o in world.scene(split, i).objects)


def test_captions_tell_what_is_there():
    world = ToyWorld(SMALL)
    for index in range(30):
        scene = world.scene("val", index)
        long, short = long_caption(scene), short_captions(scene)
        for o in scene.objects:
            assert f"{o.colour} {o.shape}" in long
        assert len(long.split(". ")) == len(scene.objects) + 1
        assert len(short) == 5
        pairs = {f"{o.colour} {o.shape}" for o in scene.objects}
        for caption in short:
            named = re.findall(rf"\b((?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}))\b", caption)
            assert set(named) <= pairs


def read_expression(sentence, scene):
    """Independent interpretation of a sentence: the objects it matches, or None if no rule applies."""
    objects = scene.objects
    m = re.fullmatch(r"the (\w+) (left of|right of|above|below) the (\w+) (\w+)", sentence)
    if m:
        anchor = next(o for o in objects if (o.colour, o.shape) == (m[3], m[4]))
        axis = 0 if "of" in m[2] else 1
        sign = 1 if m[2] in ("right of", "below") else -1
        return [
            k
            for k, o in enumerate(objects)
            if o is not anchor and o.shape == m[1] and sign * (o.centre[axis] - anchor.centre[axis]) > 0
        ]
    m = re.fullmatch(r"the (leftmost|rightmost|topmost|bottommost) (\w+)", sentence)
    if m:
        fits = [k for k, o in enumerate(objects) if o.shape == m[2]]
        axis = 0 if m[1] in ("leftmost", "rightmost") else 1
        pick = min if m[1] in ("leftmost", "topmost") else max
        return [pick(fits, key=lambda k: objects[k].centre[axis])]
    m = re.fullmatch(r"all (\w+) shapes|every (\w+)", sentence)
    if m:
        return [k for k, o in enumerate(objects) if (m[1] and o.colour == m[1]) or (m[2] and o.shape == m[2])]
    words = sentence.removeprefix("the ").split()
    return [k for k, o in enumerate(objects) if set(words) <= {o.shape, o.colour, o.texture, o.size}]


def test_expressions_fit_exactly_their_targets():
    world, kinds = ToyWorld(WorldConfig(seed=3, train=400, val=10, test=10)), {}
    for index in range(400):
        scene = world.scene("train", index)
        for e in expressions(scene):
            assert sorted(read_expression(e.sentence, scene)) == sorted(e.targets), (index, e)
            kinds[e.kind] = kinds.get(e.kind, 0) + 1
    assert set(kinds) == {"attribute", "relation", "superlative", "plural", "none"}
    assert min(kinds.values()) >= 10


def test_scene_files_hold_what_captions_say(folder):
    scenes = json.loads((folder / "annotations/scenes_val.json").read_text())
    world, said = ToyWorld(SMALL), 0
    assert len(scenes) == SMALL.val
    for index, facts in enumerate(scenes):
        scene = world.scene("val", index)
        assert (facts["background"], facts["grey"]) == (scene.background, scene.grey)
        assert [(o["colour"], o["shape"]) for o in facts["objects"]] == [o.pair for o in scene.objects]
        assert [o["hidden"] for o in facts["objects"]] == [o.visible < 0.9 for o in scene.objects]
        long = long_caption(scene)
        assert long.count("partly hidden") == sum(o["hidden"] for o in facts["objects"])
        assert all(f"{o['colour']} {o['shape']} {o['place']}" in long for o in facts["objects"])
        said += sum(o["hidden"] for o in facts["objects"])
    assert said > 3


def test_real_dataset_classes_read_it(folder):
    from mmdet.registry import DATASETS
    from mmengine.registry import init_default_scope

    from smartclip_det import register_detection  # noqa: F401

    init_default_scope("mmdet")
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True, "poly2mask": False},
    ]
    options = {"data_root": str(folder), "test_mode": True, "pipeline": pipeline}
    coco = DATASETS.build(
        {
            "type": "OpenVocabCocoDataset",
            "ann_file": "annotations/instances_val.json",
            "vocabulary": list(SHAPES),
            "data_prefix": {"img": "images/val"},
            **options,
        }
    )
    assert len(coco) == 40
    loaded = coco[0]
    assert loaded["img"].shape[2] == 3
    assert len(loaded["gt_bboxes"]) == len(ToyWorld(SMALL).scene("val", 0).objects)
    lvis = json.loads((folder / "annotations/lvis_val.json").read_text())
    federated = DATASETS.build(
        {
            "type": "OpenVocabLVISDataset",
            "ann_file": "annotations/lvis_val.json",
            "data_prefix": {"img": "images"},
            "vocabulary": [c["name"] for c in lvis["categories"]],
            **options,
        }
    )
    assert federated[3]["img"].shape[2] == 3
    greys = [p for p in (folder / "images/train").glob("*.jpg") if Image.open(p).mode == "L"]
    assert greys


def test_evaluators_read_it(folder):
    for name, run in (("instances_val", None), ("lvis_val", evaluate_lvis)):
        truth = load_ground_truth(folder / f"annotations/{name}.json")
        results = [
            {k: a[k] for k in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.5}
            for a in truth.data["annotations"]
        ]
        checked, counts = check_predictions(results, truth)
        assert counts["outside_image"] == 0
        if run is None:
            for kind in ("bbox", "segm"):
                checked, _ = check_predictions(results, truth, kind)
                assert evaluate_tables(truth, checked, iou_type=kind).ap() == pytest.approx(1.0)
        else:
            for backend in ("fast", "reference"):
                assert run(truth, checked, backend=backend)[0]["bbox_AP"] == pytest.approx(1.0)


def test_expression_readers_agree_on_single_targets(folder):
    refs = {
        e.id: e
        for split in ("train", "val", "testA", "testB")
        for e in load_expressions(folder / "refs/refs(toy).p", split=split)
    }
    seen = 0
    for split in ("val", "testA"):
        for e in load_expressions(folder / f"refs/finetune_toy_{split}.json"):
            if len(e.boxes) == 1:
                other = refs[e.id]
                assert (other.sentence, other.boxes, other.file_name) == (e.sentence, e.boxes, e.file_name)
                assert other.split == split
                assert (folder / "images" / e.file_name).is_file()
                seen += 1
            else:
                assert e.id not in refs
    assert seen > 100
    empties = [e for e in load_expressions(folder / "refs/finetune_toy_val.json") if not e.boxes]
    assert len(empties) == 40


def test_lvis_frequencies_follow_the_training_images(folder):
    data = json.loads((folder / "annotations/lvis_train.json").read_text())
    assert len(data["categories"]) == len(BASE_SHAPES) * len(COLOURS)
    for c in data["categories"]:
        assert c["frequency"] == ("r" if c["image_count"] <= 10 else "c" if c["image_count"] <= 100 else "f")
    present = {(a["image_id"], a["category_id"]) for a in data["annotations"]}
    for image in data["images"]:
        assert not {(image["id"], c) for c in image["neg_category_ids"]} & present


def test_bad_configurations():
    with pytest.raises(UserError, match="side >= 32"):
        ToyWorld(WorldConfig(side=10))
    with pytest.raises(UserError, match="has 20 scenes"):
        ToyWorld(SMALL).scene("testA", 20)
    with pytest.raises(UserError, match="Nearest: .*testA"):
        ToyWorld(SMALL).scene("test", 0)
    with pytest.raises(UserError, match="held_out"):
        ToyWorld(WorldConfig(held_out=999))


def test_tool_draws_a_contact_sheet(tmp_path):
    import subprocess
    import sys

    from tests.conftest import REPO

    done = subprocess.run(
        [
            sys.executable,
            str(REPO / "tools/data/make_toy.py"),
            "--out",
            str(tmp_path),
            "--train",
            "5",
            "--val",
            "6",
            "--test",
            "2",
            "--held-out",
            "2",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "contact_sheet.png").size[0] == 1200
    told = re.search("held out from training: (.*)", done.stdout)
    assert told
    assert len(told[1].split(", ")) == 2
    assert json.loads((tmp_path / "world.json").read_text())["config"]["held_out"] == 2


def test_masks_are_checked_before_training_where_it_uses_them(folder, tmp_path):
    from mmdet.registry import DATASETS
    from mmdet.utils import register_all_modules

    from smartclip_det import register_detection  # noqa: F401

    register_all_modules()
    data = json.loads((folder / "annotations/instances_val.json").read_text())
    data["annotations"][5]["segmentation"] = [[2, 2, 10, 8]]
    (tmp_path / "broken.json").write_text(json.dumps(data))
    options = {
        "type": "OpenVocabCocoDataset",
        "ann_file": str(tmp_path / "broken.json"),
        "vocabulary": list(SHAPES),
        "serialize_data": False,
    }
    pipeline = [{"type": "LoadAnnotations", "with_bbox": True}]
    boxes = DATASETS.build({**options, "pipeline": pipeline})
    assert not any("mask" in i for r in boxes.data_list for i in r["instances"])
    pipeline[0]["with_mask"] = True
    number = data["annotations"][5]["id"]
    with pytest.raises(UserError, match=f"annotation {number}: polygon 0 has 4 numbers"):
        DATASETS.build({**options, "pipeline": pipeline})

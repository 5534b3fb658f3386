"""Towers without training: views, objectness, given boxes, batches, rows from images, the oracle test, bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from smartclip_det import Predictor
from smartclip_det.apis.families import loading
from smartclip_det.core.errors import UserError
from smartclip_det.core.similarity import text_seed
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.metrics.coco import coco_metrics, evaluate_tables
from smartclip_det.models.boxes import ScoredBoxes
from smartclip_det.models.rescoring import class_scores
from smartclip_det.models.towers import SmartCLIP

GRID = [[x, y, x + 32, y + 32] for y in (0, 32, 64) for x in (0, 32, 64)]
TEXTS = ["a cup", "a dog"]


def picture(place=4, seed=0):
    """Noise, with a red cross on blue in one cell of the grid."""
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (96, 96, 3), dtype=np.uint8))
    draw, (x, y, right, bottom) = ImageDraw.Draw(image), GRID[place]
    draw.rectangle((x, y, right - 1, bottom - 1), fill=(20, 40, 230))
    draw.line((x + 16, y + 2, x + 16, bottom - 3), fill=(250, 30, 20), width=6)
    draw.line((x + 2, y + 16, right - 3, y + 16), fill=(250, 30, 20), width=6)
    return image


class GridBoxes:
    """The cells of the grid, with increasing scores."""

    def __init__(self):
        self.asked = 0

    def facts(self):
        return {"source": "grid"}

    def to(self, device):
        return self

    def __call__(self, pictures):
        self.asked += len(pictures)
        scores = torch.linspace(0.2, 1.0, 9)
        return [ScoredBoxes(torch.tensor(GRID, dtype=torch.float32), scores) for _ in pictures]


@pytest.fixture(scope="module")
def towers():
    return SmartCLIP.from_arch("SmartCLIP-tiny", seed=0)


def build(towers, boxes="grid", **options):
    source = GridBoxes() if boxes == "grid" else boxes
    return Predictor.from_pretrained(towers, boxes=source, use_cache=False, parser="rules", **options)


@pytest.fixture(scope="module")
def predictor(towers):
    return build(towers)


def same(a, b):
    return len(a) == len(b) and np.allclose(a.boxes, b.boxes) and np.allclose(a.scores, b.scores, atol=1e-5)


def test_scores_are_those_of_rescoring_times_objectness(towers):
    alone = {}
    for regions in ("dense", "crop", "both"):
        p = build(towers, regions=regions, objectness_power=0.5, nms_iou=1.0, policy={"dense_temperature": 30.0})
        encoded = p.set_image(picture())
        found = p.detect(TEXTS)
        views = [v for v in (encoded.vectors, encoded.dense_vectors) if v is not None]
        assert len(views) == (2 if regions == "both" else 1)
        bank = p.family.texts(TEXTS, "photo")
        expected = class_scores(views, bank, p.policy) * encoded.objectness.sqrt()[:, None]
        assert np.allclose(np.sort(found.scores), np.sort(expected.flatten().numpy()), atol=1e-6)
        alone[regions] = views
    assert torch.allclose(alone["both"][0], alone["dense"][0], atol=1e-5)
    assert torch.allclose(alone["both"][1], alone["crop"][0], atol=1e-5)
    assert not torch.allclose(alone["dense"][0], alone["crop"][0], atol=1e-2)


def test_objectness_masks_and_limits_do_what_they_say(towers):
    image = picture()
    weighted, flat = build(towers, objectness_power=1.0, nms_iou=1.0), build(towers, objectness_power=0.0, nms_iou=1.0)
    last, first = (p.detect(TEXTS, image=p.encode_image(image)) for p in (weighted, flat))
    assert last.scores.max() < first.scores.max() + 1e-6
    assert not np.allclose(np.sort(last.scores), np.sort(first.scores))
    hard, off = (build(towers, masks=m) for m in ("hard", "off"))
    a, b = (p.detect(TEXTS, image=p.encode_image(image)) for p in (hard, off))
    assert not np.allclose(a.scores, b.scores)
    few = build(towers, max_boxes=3, max_detections=2)
    encoded = few.set_image(image)
    assert encoded.boxes.tolist() == GRID[:5:-1]
    assert len(few.detect(TEXTS)) == 2
    near = build(towers, nms_iou=0.5)
    twice = [GRID[0], [1, 1, 33, 33], GRID[8]]
    assert len(near.detect(["a cup"], image=near.encode_image(image, boxes=twice))) == 2


def test_scores_do_not_depend_on_other_texts_and_large_vocabularies_are_scored_in_pieces(predictor, monkeypatch):
    predictor.set_image(picture())
    alone = predictor.detect(["a cup"])
    many = predictor.detect([*(f"thing {n}" for n in range(30)), "a cup"], max_detections=1000)
    assert np.allclose(np.sort(many.of("a cup").scores), np.sort(alone.scores), atol=1e-6)
    monkeypatch.setattr("smartclip_det.apis.families.training_free.CHUNK", 7)
    pieces = predictor.detect([*(f"thing {n}" for n in range(30)), "a cup"], max_detections=1000)
    assert same(pieces, many)
    assert pieces.label_names == many.label_names


def test_given_boxes_are_used_as_they_are_and_none_find_nothing(predictor):
    asked = predictor.family.source.asked
    predictor.set_image(picture(), boxes=[GRID[4], [3.5, 2, 50, 60]])
    assert predictor.family.source.asked == asked
    found = predictor.detect(TEXTS)
    assert {tuple(b) for b in found.boxes.tolist()} == {tuple(map(float, GRID[4])), (3.5, 2, 50, 60)}
    for none in ([], np.zeros((0, 4))):
        predictor.set_image(picture(), boxes=none)
        assert len(predictor.detect(TEXTS)) == len(predictor.ground("the left cup")) == 0
        assert predictor.embed().shape == (0, 64)
        assert predictor.explain("a cup").similarity.shape == (24, 24)


def test_batches_equal_single_images_and_a_wide_picture_shows_its_cells(predictor):
    wide = Image.fromarray(np.random.default_rng(5).integers(0, 255, (60, 96, 3), dtype=np.uint8))
    images = [picture(0), wide.crop((0, 0, 96, 40)).resize((96, 96)), picture(7, seed=3)]
    alone = [predictor.detect(TEXTS, image=predictor.encode_image(i)) for i in images]
    assert all(same(a, b) for a, b in zip(predictor.detect_images(images, TEXTS, batch_size=3), alone, strict=True))
    predictor.set_images(images, batch_size=2)
    assert all(same(a, b) for a, b in zip(predictor.detect_images(texts=TEXTS), alone, strict=True))
    with pytest.raises(UserError, match="3 images are set"):
        predictor.detect(TEXTS)
    explained = predictor.explain("a cup", image=predictor.encode_image(wide, boxes=[]))
    assert explained.similarity.shape == (15, 24)  # 192 pixels in patches of 8, cropped to 60 / 96


def test_grounding_reasons_and_answers_know_their_image(predictor):
    predictor.set_image(picture())
    left, right = (predictor.ground(f"the {side} cup").boxes[0, 0] for side in ("leftmost", "rightmost"))
    assert left < right
    assert len(predictor.ground(["a cup", "a dog"], top_k=4)[1]) == 4
    assert predictor.detect(TEXTS).size == (96, 96)
    with pytest.raises(UserError, match="no mask head"):
        predictor.segment("a cup")
    vectors = predictor.embed()
    assert vectors.shape == (9, 64)
    # The source's boxes are sorted by score: the last cells first.
    assert np.allclose(predictor.embed([GRID[3]])[0], vectors[8 - 3], atol=1e-5)
    assert np.allclose(predictor.embed([GRID[3]], image=picture())[0], vectors[8 - 3], atol=1e-5)


@pytest.mark.parametrize("regions", ["dense", "crop", "both"])
def test_a_row_from_pictures_finds_its_own_region_beside_texts(towers, regions):
    p = build(towers, regions=regions, objectness_power=0.0)
    bank = p.set_vocabulary(TEXTS)
    texts_alone = p.detect(TEXTS, image=p.encode_image(picture()))
    for options in ({}, {"like": "a cup"}):
        more = p.set_vocabulary(bank.with_images("my mug", [(picture(), GRID[4])], **options))
        assert p.vocabulary == (*TEXTS, "my mug")
        p.set_image(picture())
        found = p.detect()
        assert found.of("my mug").boxes[0].tolist() == GRID[4], options
        assert same(found.of(*TEXTS), texts_alone)
        row = more.masks[-1]
        assert row.all() if "like" not in options else torch.equal(row, bank.masks[bank.index_of("a cup")])
    # Without contrast its own region is nearest as well, but all others are close.
    plain = bank.with_images("my mug", [(picture(), GRID[4])], contrast=False)
    encoded = p.encode_image(picture())
    assert plain.cosine(torch.from_numpy(p.embed(image=encoded)), p.policy)[:, -1].argmax() == 4
    assert p.detect(plain, image=encoded).of("my mug").scores.mean() > found.of("my mug").scores.mean() + 0.1
    # In a new image, from two examples.
    two = bank.with_images("my mug", [(picture(4), GRID[4]), (picture(1, seed=8), GRID[1])])
    found = p.detect(two, image=p.encode_image(picture(6, seed=9)))
    assert found.of("my mug").boxes[0].tolist() == GRID[6]


def test_rows_from_pictures_join_texts_of_their_name_and_survive_a_file(predictor, tmp_path):
    from smartclip_det import TextBank

    bank = predictor.set_vocabulary(TEXTS)
    joined = bank.with_images("a dog", [(picture(), GRID[4])])
    assert (len(joined), len(joined.texts), joined.class_index.tolist()) == (2, 3, [0, 1, 1])
    joined.save(tmp_path / "bank.safetensors")
    back = TextBank.load(tmp_path / "bank.safetensors")
    assert torch.equal(back.embeds, joined.embeds)
    with pytest.raises(UserError, match="has no image encoder"):
        back.with_images("my mug", [(picture(), GRID[4])])
    again = back.with_images("my mug", [(picture(), GRID[4])], encoder=predictor.picture_vectors)
    assert torch.allclose(again.embeds[-1], joined.embeds[-1])
    # A uniform image has no contrast, so the row is the region itself.
    plain = Image.new("RGB", (96, 96), (90, 90, 200))
    whole = bank.with_images("blue", [(plain, [0, 0, 96, 96])])
    assert torch.isfinite(whole.embeds).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda p: p.set_image(picture(), boxes=[[0, 0, 200, 50]]),
            "exceed the image of 96 x 96 pixels.*another image",
        ),
        (lambda p: p.set_image(picture(), boxes=[[50, 50, 20, 20]]), "x2 < x1 or y2 < y1"),
        (lambda p: p.set_image(picture(), boxes=[[0, 0, float("nan"), 20]]), "not finite"),
        (lambda p: p.set_image(picture(), boxes=[1, 2, 3, 4]), r"must be \[R, 4\]"),
        (lambda p: p.set_image(picture(), boxes=[["a", 0, 1, 1]]), "four numbers"),
        (lambda p: p.encode_images([picture()], boxes=[None, None]), "one entry per image"),
        (lambda p: p.detector, "has no detector"),
        (lambda p: p.set_vocabulary(TEXTS).with_images("my mug", []), "at least one image"),
        (lambda p: p.set_vocabulary(TEXTS).with_images(" ", [(picture(), GRID[0])]), "needs a name"),
        (lambda p: p.set_vocabulary(TEXTS).with_images("mug", [(picture(), [5, 5, 5, 5])]), "is empty"),
        (lambda p: p.set_vocabulary(TEXTS).with_images("mug", [picture()]), "pairs of an image and a box"),
        (lambda p: p.set_vocabulary(TEXTS).with_images("mug", [(picture(), GRID[0])], like="a cap"), "nearest: a cup"),
        (
            lambda p: p.set_vocabulary(replace(p.family.texts(TEXTS, "photo"), provenance={"checkpoint_hash": "0"})),
            "encoded by towers 0",
        ),
        (
            lambda p: p.detect(
                replace(p.family.texts(TEXTS, "photo"), provenance={"checkpoint_hash": "0"}),
                image=p.encode_image(picture()),
            ),
            "encoded by towers 0",
        ),
    ],
)
def test_bad_input_is_one_line(predictor, call, says):
    with pytest.raises(UserError, match=says) as error:
        call(predictor)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"boxes": "torchvison"}, "Nearest: torchvision"),
        ({"boxes": "torchvision:fasterrcnn_resnet50_fpn_v3"}, "Nearest: fasterrcnn_resnet50_fpn"),
        ({"boxes": "mmdet:rtmdet.py"}, "needs a config and a checkpoint"),
        ({"boxes": "rtmdet.py"}, "mmdet:CONFIG:CHECKPOINT"),
        ({"boxes": "absent.json"}, "No box file at absent.json"),
        ({"regions": "denser"}, "Nearest: dense"),
        ({"objectness": 1}, "Nearest: objectness_power"),
        ({"objectness_power": -1.0}, "objectness_power must be in"),
        ({"masks": "hrd"}, "Nearest: hard"),
    ],
)
def test_unknown_sources_and_options_name_the_nearest(towers, options, says):
    with pytest.raises(UserError, match=says):
        Predictor.from_pretrained(towers, **{"boxes": None, **options})


def test_a_misspelled_name_fails_before_the_boxes_are_loaded(monkeypatch):
    monkeypatch.setattr(loading, "box_source", lambda *given: pytest.fail("loads, or downloads, its weights"))
    for name, says in (("smartclip-b61", "Nearest: .*smartclip-b16"), ("absent/towers.pt", "No checkpoint at absent")):
        with pytest.raises(UserError, match=says):
            Predictor.from_pretrained(name, boxes="torchvision")


def test_defaults_follow_the_towers_and_given_values_win():
    vit, local = (SmartCLIP.from_arch(a, seed=0) for a in ("SmartCLIP-tiny", "SmartCLIP-toy"))
    weighted = SmartCLIP.from_arch("SmartCLIP-tiny", seed=0, sizes={"saliency": True})
    vit.logit_scale.data.fill_(math.log(100))
    weighted.logit_scale.data.fill_(math.log(20))
    plain, learned, small = (build(t) for t in (vit, weighted, local))
    # A temperature for CLIP's scale of 100 saturates the sigmoid of towers with a smaller one, and their ranking is lost.
    assert plain.policy.dense_temperature == pytest.approx(50)
    assert learned.policy.dense_temperature == pytest.approx(10)
    assert [p.policy.dense_norm for p in (plain, learned, small)] == ["pixel", "none", "none"]
    assert [p.protocol["dense_size"] for p in (plain, learned, small)] == [192, 192, 64]
    assert {p.policy.activation for p in (plain, learned, small)} == {"sigmoid"}
    given = build(vit, masks="off", dense_size=64, policy={"dense_temperature": 30.0, "dense_norm": "none"})
    assert (given.policy.dense_temperature, given.policy.dense_norm, given.protocol["dense_size"]) == (30, "none", 64)
    assert given.policy.mask_mode == "off"


def test_no_source_asks_for_boxes(towers):
    with pytest.raises(UserError, match=r"set_image\(image, boxes="):
        build(towers, boxes=None).set_image(picture())


class Oracle:
    """Region vectors of ground-truth boxes: the text vector of the true class."""

    def __init__(self, truth):
        self.sizes = {i["id"]: (i["width"], i["height"]) for i in truth.data["images"]}
        self.names, self.bank = {}, None
        for a in truth.data["annotations"]:
            x, y, w, h = a["bbox"]
            key = (self.sizes[a["image_id"]], *np.float32([x, y, x + w, y + h]).tolist())
            self.names[key] = truth.categories[a["category_id"]]

    def pool(self, dense, sizes, boxes):
        rows = [
            self.bank.embeds[self.bank.index_of(self.names[(s, *b)])]
            for s, mine in zip(sizes, boxes, strict=True)
            for b in mine.tolist()
        ]
        return torch.stack(rows) if rows else torch.zeros(0, self.bank.dim)


def ap50(predictor, truth, bank):
    predictor.set_vocabulary(bank)
    ids = {name: number for number, name in truth.categories.items()}
    results = []
    for info, found in zip(truth.data["images"], predictor.detect_images(), strict=True):
        results += found.to_coco(info["id"], ids)
    return coco_metrics(evaluate_tables(truth, results))["bbox_mAP_50"]


def test_the_oracle_reaches_the_ceiling_on_real_photographs_and_shuffled_texts_reach_nothing(
    shared, towers, monkeypatch
):
    """Ground-truth boxes from the annotation file, through the predictor's default scoring, NMS and answers."""
    root = shared / "coco_mini_train"
    ann = root / "instances_train2017.json"
    truth = load_ground_truth(ann)
    assert len(truth.data["images"]) == 80
    # Real objects of one class overlap, so a lower NMS threshold loses AP.
    p = build(towers, boxes=ann, masks="off", nms_iou=0.95, dense_size=64, max_detections=300)
    oracle = Oracle(truth)
    monkeypatch.setattr(p.family.regions, "pool", oracle.pool)
    names = list(truth.categories.values())
    bank = p.set_vocabulary(names)
    # Texts of untrained towers are nearly equal; those of trained ones differ, also from "background".
    apart = torch.stack([torch.randn(64, generator=torch.Generator().manual_seed(text_seed(n))) for n in names])
    oracle.bank = replace(bank, embeds=torch.nn.functional.normalize(apart, dim=1))
    p.set_images([root / "images" / i["file_name"] for i in truth.data["images"]])
    assert ap50(p, truth, oracle.bank) >= 0.99
    assert ap50(p, truth, oracle.bank.text_shuffled()) < 0.05


def test_a_file_of_boxes_goes_by_the_pictures_names(towers, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("one.png", "two.png"):
        picture(4).save(folder / name)
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"one.png": {"boxes": [GRID[0], GRID[4]], "scores": [0.3, 0.9]}, "two.png": []}))
    p = build(towers, boxes=path)
    encoded = p.set_image(folder / "one.png")
    assert encoded.boxes.tolist() == [GRID[4], GRID[0]]
    assert encoded.objectness.tolist() == pytest.approx([0.9, 0.3])
    assert [len(f) for f in p.detect_images(folder, ["a cup"])] == [2, 0]
    assert len(p.detect(["a cup"], image=p.encode_image(Image.open(folder / "one.png")))) == 2
    with pytest.raises(UserError, match="this image has none"):
        p.set_image(np.zeros((96, 96, 3), dtype=np.uint8))
    picture(4).save(folder / "onne.png")
    with pytest.raises(UserError, match="no boxes of onne.png.*nearest: one.png"):
        p.set_image(folder / "onne.png")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([{"image_id": 1, "bbox": [0, 0, 1, 1], "score": 1, "category_id": 1}], "is a result list"),
        ({}, "does not have boxes by image"),
        ({"a.png": 3}, "not have a list of boxes"),
        ({"a.png": [[0, 0, 1]]}, "box 0 must be four numbers"),
        ({"a.png": {"boxes": [[0, 0, 1, 1]], "scores": [2]}}, r"number in \[0, 1\] for each of the 1 boxes"),
        (
            {
                "images": [{"id": 1, "file_name": "a.png", "width": 50, "height": 96}],
                "categories": [],
                "annotations": [],
            },
            "for an image of 50 x 96 pixels; this one has 96 x 96",
        ),
    ],
)
def test_wrong_files_of_boxes_are_told(towers, tmp_path, content, says):
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    picture().save(tmp_path / "a.png")
    with pytest.raises(UserError, match=says):
        build(towers, boxes=tmp_path / "boxes.json").set_image(tmp_path / "a.png")

"""Images with sentences: augmentation, contents of samples, and scoring of runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import init_default_scope
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.referring import ReferringDataset
from smartclip_det.datasets.referring_augment import POSITION_WORDS, mirror, names_a_place, random_crop
from smartclip_det.formats.expressions.jsonl import write_expressions
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.protocols.referring_metric import ReferringMetric
from smartclip_det.protocols.registry import evaluate


def test_sides_are_exchanged_by_whole_words():
    image = Image.new("RGB", (100, 50))
    image.putpixel((10, 5), (255, 0, 0))
    flipped, boxes, texts = mirror(
        image, [[10.0, 5, 30, 20]], ["bright red cup on the Right", "left-hand guy, far left"]
    )
    assert flipped.getpixel((89, 5)) == (255, 0, 0)
    assert boxes == [[70, 5, 90, 20]]
    assert mirror(image, [], ["the lefthand side"])[2] == ["the righthand side"]
    assert texts == ["bright red cup on the Left", "right-hand guy, far right"]
    assert mirror(flipped, boxes, texts)[1:] == (
        [[10.0, 5, 30, 20]],
        ["bright red cup on the Right", "left-hand guy, far left"],
    )


def test_an_image_stays_where_a_word_may_be_a_side_or_not():
    image = Image.new("RGB", (40, 30))
    assert mirror(image, [], ["the left cup", "guy right behind the tree"]) is None
    assert mirror(image, [], ["the left cup"])[2] == ["the right cup"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stop sign", False),
        ("bright copyright", False),
        ("top-left mug", True),
        ("the man BEHIND her", True),
        ("brown cow", False),
        ("backpack", False),
    ],
)
def test_words_of_places(text, expected):
    assert names_a_place(text) == expected


@st.composite
def picture(draw):
    width, height = draw(st.integers(8, 90)), draw(st.integers(8, 90))
    boxes = []
    for _ in range(draw(st.integers(0, 3))):
        x, y = draw(st.floats(0, width - 4)), draw(st.floats(0, height - 4))
        boxes.append([x, y, draw(st.floats(x + 1, width)), draw(st.floats(y + 1, height))])
    return width, height, boxes, draw(st.integers(0, 2**20)), draw(st.floats(0.1, 1.0))


@given(picture())
def test_a_crop_keeps_every_box_whole(drawn):
    width, height, boxes, seed, least = drawn
    image = Image.fromarray(np.arange(width * height, dtype=np.uint32).reshape(height, width).astype(np.uint8)).convert(
        "RGB"
    )
    window, moved = random_crop(image, boxes, ["a red cup"], np.random.default_rng(seed), least)
    assert window.width >= int(least * width)
    assert window.height >= int(least * height)
    for before, after in zip(boxes, moved, strict=True):
        assert after[0] >= 0
        assert after[1] >= 0
        assert after[2] <= window.width
        assert after[3] <= window.height
        assert after[2] - after[0] == pytest.approx(before[2] - before[0])
        left, top = round(before[0] - after[0]), round(before[1] - after[1])
        assert window.getpixel((0, 0)) == image.getpixel((left, top))


@given(st.sampled_from(POSITION_WORDS))
def test_no_crop_where_a_sentence_names_a_place(word):
    image = Image.new("RGB", (50, 50))
    assert random_crop(image, [[1, 1, 9, 9]], [f"the {word} cup"], np.random.default_rng(0))[0] is image


@pytest.fixture
def sentences(tmp_path):
    """Two images, five sentences with one, no and many targets."""
    for n, size in enumerate([(120, 60), (40, 80)]):
        Image.new("RGB", size, (10, 200, 30)).save(tmp_path / f"{n}.png")
    rows = [
        Expression(
            1, 0, "0.png", "cup on the left", ((0.0, 0, 30, 30),), 120, 60, masks=([[0, 0, 30, 0, 30, 30, 0, 30]],)
        ),
        Expression(
            2,
            0,
            "0.png",
            "two dogs",
            ((0.0, 0, 6, 20), (60, 0, 120, 60)),
            120,
            60,
            masks=([[0, 0, 6, 0, 6, 20, 0, 20]], [[60, 0, 120, 0, 120, 60, 60, 60]]),
        ),
        Expression(3, 0, "0.png", "a whale", (), 120, 60),
        Expression(
            4, 1, "1.png", "a red cup", ((10.0, 20, 40, 80),), 40, 80, masks=([[10, 20, 40, 20, 40, 80, 10, 80]],)
        ),
        Expression(5, 1, "1.png", "a mug", ((10.0, 20, 40, 80),), 40, 80, masks=([[10, 20, 40, 20, 40, 80, 10, 80]],)),
    ]
    write_expressions(tmp_path / "e.jsonl", rows)
    return tmp_path


def test_a_sample_is_an_image_with_its_sentences_and_boxes_on_the_square(sentences):
    data = ReferringDataset("e.jsonl", data_root=str(sentences), image_size=60, test_mode=True, with_masks=True)
    assert len(data) == 2
    sample = data[0]
    facts = sample["data_samples"]
    assert sample["inputs"].shape == (3, 60, 60)
    assert facts.sentence_ids == [1, 2, 3]
    assert [len(b) for b in facts.boxes] == [1, 2, 0]
    assert facts.boxes[0].tolist() == [[0, 0, 15, 15]]
    assert facts.scale == (0.5, 0.5)
    assert facts.ori_shape == (60, 120)
    assert facts.masks.shape == (3, 60, 60)
    assert facts.masks[0, :14, :14].all()
    assert facts.masks[0].sum() == 15 * 15
    assert not facts.masks[2].any()
    squashed = ReferringDataset("e.jsonl", data_root=str(sentences), image_size=60, fit="squash", test_mode=True)
    assert squashed[0]["data_samples"].boxes[0].tolist() == [[0, 0, 15, 30]]


def test_what_is_drawn_depends_on_seed_epoch_and_index_alone(sentences):
    options = {"data_root": str(sentences), "image_size": 60, "sentences_per_image": 2, "flip": 0.5, "crop": 0.5}
    one, two = ReferringDataset("e.jsonl", **options), ReferringDataset("e.jsonl", **options)

    def told(d, i):
        return [d[i]["data_samples"].get(k) for k in ("sentences", "sentence_ids", "flipped")]

    two.set_epoch(3)
    assert told(one, 3 * 2 + 1) == told(two, 1)
    assert len({str(told(one, 2 * epoch)) for epoch in range(20)}) > 2
    for epoch in range(20):
        facts = one[2 * epoch]["data_samples"]
        assert ("cup on the right" in facts.sentences) <= facts.flipped
        assert all((b >= 0).all() and (b <= 60).all() for b in facts.boxes)


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_masks_and_boxes_are_mirrored_with_the_picture(tmp_path, flip, fit):
    """A red patch is inside its mask and its box, pixel by pixel, flipped or not."""
    image = Image.new("RGB", (64, 64 if fit == "squash" else 32), (0, 0, 255))
    image.paste((255, 0, 0), (4, 6, 20, 14))
    image.save(tmp_path / "0.png")
    row = Expression(
        1, 0, "0.png", "cup on the left", ((4.0, 6, 20, 14),), *image.size, masks=([[4, 6, 20, 6, 20, 14, 4, 14]],)
    )
    write_expressions(tmp_path / "e.jsonl", [row])
    data = ReferringDataset("e.jsonl", data_root=str(tmp_path), image_size=64, fit=fit, with_masks=True, flip=flip)
    sample = data[0]
    facts = sample["data_samples"]
    x = 44 if flip else 4
    assert (facts.flipped, facts.sentences) == ((True, ["cup on the right"]) if flip else (False, ["cup on the left"]))
    assert facts.boxes[0].tolist() == [[x, 6, x + 16, 14]]
    red = (sample["inputs"] == torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]).all(0)
    assert red.sum() == 16 * 8
    assert torch.equal(facts.masks[0], red)


def test_leaked_images_are_left_out_and_bad_options_refused(sentences):
    (sentences / "leaked.txt").write_bytes(b"somewhere/0.png\r\n")
    data = ReferringDataset("e.jsonl", data_root=str(sentences), without="leaked.txt")
    assert [data.get_data_info(i)["img_id"] for i in range(len(data))] == [1]
    (sentences / "other.txt").write_text("000000000009.jpg")
    with pytest.raises(UserError, match="another dataset"):
        ReferringDataset("e.jsonl", data_root=str(sentences), without="other.txt")
    both = ReferringDataset(["e.jsonl", "e.jsonl"], data_root=str(sentences))
    assert len(both) == 4
    for options, message in (
        ({"flip": 2}, "probability"),
        ({"fit": "crop"}, "fit"),
        ({"crop": 0.5, "with_masks": True}, "do not support masks"),
        ({"without": "absent.txt"}, "check_leakage"),
        ({"split": "val"}, "no split"),
    ):
        with pytest.raises(UserError, match=message):
            ReferringDataset("e.jsonl", data_root=str(sentences), **options)


def grounded(*rows):
    return {
        "grounded": [
            {"id": i, "boxes": b, "scores": [0.9 - 0.1 * n for n in range(len(b))], **more} for i, b, more in rows
        ]
    }


def test_a_run_is_scored_as_its_file_would_be_whatever_the_batches(sentences, tmp_path):
    mask = np.zeros((60, 120), dtype=bool)
    mask[:30, :30] = True
    tall = np.zeros((80, 40), dtype=bool)
    tall[20:, 10:] = True
    none = {"mask": np.zeros((60, 120), dtype=bool)}
    samples = [
        grounded((1, [[0, 0, 30, 30]], {"mask": mask}), (2, [[60, 0, 120, 60]], {"mask": mask}), (3, [], none)),
        grounded((4, [[0, 0, 5, 5]], {"mask": tall}), (5, [[10, 20, 40, 80]], {"mask": tall})),
    ]
    values = []
    for order in ([0, 1], [1, 0]):
        metric = ReferringMetric(
            "e.jsonl",
            data_root=str(sentences),
            protocols=["grefcoco", "grefseg"],
            out_file=str(tmp_path / "found.jsonl"),
            metrics_file=str(tmp_path / "m.json"),
        )
        for i in order:
            metric.process({}, [samples[i]])
        values.append(metric.compute_metrics(metric.results))
    assert values[0] == values[1]
    assert values[0]["grefcoco_f1"] == pytest.approx(3 / 5)
    assert values[0]["grefcoco_n_acc"] == values[0]["grefseg_n_acc"] == 1
    for protocol, file in (("grefcoco", "found.jsonl"), ("grefseg", "found.masks.jsonl")):
        again = evaluate(protocol, sentences / "e.jsonl", tmp_path / file)
        assert {f"{protocol}_{k}": v for k, v in again.metrics.items()}.items() <= values[0].items()
    stamp = json.loads((tmp_path / "m.json").read_text())["protocol"]
    assert set(stamp["protocols"]) == {"grefcoco", "grefseg"}
    bare = ReferringMetric("e.jsonl", data_root=str(sentences), protocols=["refseg"])
    with pytest.raises(UserError, match="mask_branch"):
        bare.process({}, [grounded((1, [], {}))])
    with pytest.raises(UserError, match="protocol"):
        ReferringMetric("e.jsonl", protocols=["refcocoo"])


def test_the_metric_is_found_by_configs():
    from mmdet.registry import DATASETS, METRICS

    from smartclip_det import register_detection  # noqa: F401

    init_default_scope("mmdet")
    assert METRICS.get("ReferringMetric") is ReferringMetric
    assert DATASETS.get("ReferringDataset") is ReferringDataset

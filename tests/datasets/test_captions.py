"""Caption policies and the caption data set."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.caption_policies import CaptionPolicy, partial_caption, split_sentences
from smartclip_det.datasets.captions import CaptionDataset
from smartclip_det.datasets.sides import swap_sides
from smartclip_det.datasets.toy_world import ToyWorld, WorldConfig, write_world
from smartclip_det.utils.images import MEAN_COLOUR, fit_square

SENTENCES = ["A first one", "Then a second", "A third", "The last."]
LONG = ". ".join(SENTENCES)
texts = st.text(st.characters(codec="ascii", exclude_characters="\r"), max_size=60)


def draws(weights, count=2000, short=("s1", "s2")):
    policy = CaptionPolicy(weights)
    return [policy(LONG, short, np.random.default_rng([7, n])) for n in range(count)]


def test_prefixes_are_uniform_over_their_lengths():
    found = draws("prefix")
    expected = [". ".join(SENTENCES[:k]) for k in (1, 2, 3, 4)]
    assert set(found) == set(expected)
    assert all(abs(found.count(e) / len(found) - 0.25) < 0.04 for e in expected)


def test_subsets_keep_their_order_and_reach_every_set():
    found = {tuple(split_sentences(t)) for t in draws("subset")}
    assert len(found) == 15
    assert all(sorted(f, key=SENTENCES.index) == list(f) for f in found)


def test_weights_mix_policies():
    found = draws({"full": 1, "short": 3})
    assert abs(found.count(LONG) / len(found) - 0.25) < 0.04
    assert {"s1", "s2", LONG} == set(found)
    assert set(draws("short", short=())) == {SENTENCES[0]}


@pytest.mark.parametrize("weights", ["prefx", {"prefix": 0}, {"prefix": -1.0}, {}, {"full": float("nan")}])
def test_bad_policies_are_refused(weights):
    with pytest.raises(UserError, match="prefix|policies with positive weights"):
        CaptionPolicy(weights)


@given(texts)
def test_sentences_join_to_the_caption(text):
    assert ". ".join(split_sentences(text)) == text.replace("\n", " ")


@given(texts)
def test_swapping_sides_twice_changes_nothing(text):
    once = swap_sides(text)
    assert swap_sides(swap_sides(once)) == once


def test_swapping_twice_gives_the_sentence_spelled_right():
    assert swap_sides("the cup on the RIGH") == "the cup on the LEFT"
    assert swap_sides(swap_sides("the cup on the RIGH")) == "the cup on the RIGHT"


def test_sides_are_whole_words_and_keep_capitals():
    assert swap_sides("Left of the leftover, RIGHT and rightmost, bright") == (
        "Right of the leftover, LEFT and leftmost, bright"
    )


def test_a_partial_caption_leaves_something_out():
    for n in range(20):
        got = split_sentences(partial_caption(LONG, np.random.default_rng(n)))
        assert len(got) == 2
        assert set(got) <= {s.rstrip(".") for s in SENTENCES}


def test_fits():
    from PIL import Image

    wide = Image.new("RGB", (80, 40), (200, 0, 0))
    padded = np.asarray(fit_square(wide, 32, "pad"))
    assert (padded[:16] == (200, 0, 0)).all()
    assert (padded[16:] == MEAN_COLOUR).all()
    assert (np.asarray(fit_square(wide, 32, "squash")) == (200, 0, 0)).all()
    assert fit_square(wide, 32, "crop").size == (32, 32)


def test_crop_is_the_transform_of_clip():
    from PIL import Image

    from smartclip_det.models.towers.tokenizer import image_statistics, image_transform
    from smartclip_det.utils.images import pixels

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 90, 3), dtype=np.uint8))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in image_statistics())
    ours = (pixels(fit_square(image, 32, "crop")) / 255 - mean) / std
    assert torch.allclose(ours, image_transform(32)(image), atol=1e-6)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(ToyWorld(WorldConfig(train=6, val=4, test=1)), folder, progress=False)
    return folder


def dataset(world, **options):
    images = {"size": 64, "fit": "pad", **options.pop("images", {})}
    options = {"ann_file": "annotations/share_captions_train.json", **options}
    return CaptionDataset(data_root=f"{world}/", images=images, **options)


def test_samples_depend_on_seed_epoch_and_index_alone(world):
    first, second = (
        dataset(world, texts={"policy": "subset"}),
        dataset(world, texts={"policy": "subset"}, images={"keep": True}),
    )
    second[3]
    for epoch in (0, 1):
        first.set_epoch(epoch)
        second.set_epoch(epoch)
        for i in (5, 0, 5):
            a, b = first[i], second[i]
            assert a["data_samples"].drawn_captions == b["data_samples"].drawn_captions
            assert torch.equal(a["inputs"], b["inputs"])
            assert a["inputs"].dtype == torch.uint8
    drawn = set()
    for epoch in range(12):
        first.set_epoch(epoch)
        drawn.update(first[0]["data_samples"].drawn_captions)
    assert len(drawn) > 1


def test_a_mirrored_image_has_a_mirrored_caption(world):
    plain, mirrored = (
        dataset(world, texts={"policy": "full"}),
        dataset(world, texts={"policy": "full"}, images={"flip": 1.0}),
    )
    for i in range(6):
        a, b = plain[i], mirrored[i]
        assert torch.equal(a["inputs"].flip(-1), b["inputs"])
        assert [swap_sides(c) for c in a["data_samples"].drawn_captions] == b["data_samples"].drawn_captions


def test_test_samples_hold_all_captions_and_what_is_present(world):
    found = dataset(
        world,
        ann_file="annotations/share_captions_val.json",
        test_mode=True,
        tests={
            "presence": {"shape": "{category}", "colour_shape": "{colour} {category}"},
            "presence_file": "annotations/instances_val.json",
        },
    )
    truth = json.loads((world / "annotations/instances_val.json").read_text())
    shapes = {c["id"]: c["name"] for c in truth["categories"]}
    for i in range(4):
        sample = found[i]["data_samples"]
        mine = [a for a in truth["annotations"] if a["image_id"] == sample.img_id]
        assert sample.present["shape"] == sorted({shapes[a["category_id"]] for a in mine})
        assert sample.present["colour_shape"] == sorted(
            {f"{a['attributes']['colour']} {shapes[a['category_id']]}" for a in mine}
        )
        assert len(sample.captions["short"]) == 5
        assert sample.captions["partial"] == found[i]["data_samples"].captions["partial"]
    assert set(found.metainfo["vocabularies"]) == {"shape", "colour_shape"}


def test_bad_files_are_told(world, tmp_path):
    with pytest.raises(UserError, match="caption file"):
        dataset(world, ann_file="absent.json")
    (tmp_path / "a.json").write_text('[{"id": 1, "image": "x.jpg"}]')
    with pytest.raises(UserError, match="lacks 'conversations'"):
        CaptionDataset(ann_file=str(tmp_path / "a.json"))
    (tmp_path / "b.json").write_text('[{"id": 1, "image": "x.jpg", "conversations": [{}, {"value": "A cat."}]}]')
    with pytest.raises(UserError, match=r"No image at .*x\.jpg|x\.jpg cannot be read"):
        CaptionDataset(ann_file=str(tmp_path / "b.json"), data_root=str(tmp_path))[0]
    with pytest.raises(UserError, match="presence_file"):
        dataset(world, tests={"presence": {"shape": "{category}"}})
    with pytest.raises(UserError, match="needs 'colr'"):
        dataset(world, tests={"presence": {"shape": "{colr}"}, "presence_file": "annotations/instances_val.json"})
    with pytest.raises(UserError, match=r"flip must be a probability"):
        dataset(world, images={"flip": 2})
    with pytest.raises(UserError, match=r"'sise'.*Nearest: size"):
        dataset(world, images={"sise": 32})
    with pytest.raises(UserError, match=r"'flipp'.*Nearest: flip"):
        dataset(world, flipp=0.5)


def test_keys_of_the_previous_version_are_read_and_name_their_new_ones(world):
    with pytest.warns(FutureWarning, match=r"captions_per_image is now texts=dict\(per_image=...\)"):
        old = dataset(world, captions="full", captions_per_image=2, keep_images=True)
    new = dataset(world, texts={"policy": "full", "per_image": 2}, images={"keep": True})
    assert (old.images, old.texts) == (new.images, new.texts)
    assert old[1]["data_samples"].drawn_captions == new[1]["data_samples"].drawn_captions

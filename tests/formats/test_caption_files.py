"""Caption files in every layout, unreadable images, cached images, streams of batches."""

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
from torch.utils.data import DataLoader

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.caption_policies import CaptionPolicy, pad_left, policies_of
from smartclip_det.datasets.captions import CaptionDataset
from smartclip_det.datasets.image_cache import BROKEN, ImageCache
from smartclip_det.engine.stream_sampler import EpochStreamSampler, StreamBatches
from smartclip_det.formats import captions
from smartclip_det.formats.captions import detect_layout, read_caption_records
from smartclip_det.models.towers.tokenizer import tokenize
from smartclip_det.utils.images import fit_square, open_rgb, square_boxes

LONG = "A first one. Then a second. The last."


def picture(seed, size=(40, 30)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def png(seed):
    out = io.BytesIO()
    picture(seed).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Six pairs NAME.png, NAME.txt."""
    root = tmp_path / "pairs"
    root.mkdir()
    for n in range(6):
        (root / f"{n}.png").write_bytes(png(n))
        (root / f"{n}.txt").write_text(f"Picture {n}. It has noise. Nothing else.")
    return root


def write_shards(root, count=6, per=4):
    root.mkdir()
    for shard in range(0, count, per):
        with tarfile.open(root / f"{shard // per:05d}.tar", "w") as archive:
            for n in range(shard, min(shard + per, count)):
                texts = (
                    {"txt": f"Picture {n}. More."}
                    if n % 2
                    else {"json": json.dumps({"caption": f"Picture {n}. More."})}
                )
                for ending, content in {"png": png(n), **texts}.items():
                    info = tarfile.TarInfo(f"{n:04d}.{ending}")
                    data = content if isinstance(content, bytes) else content.encode()
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return root


def test_share_captioner_records(tmp_path, monkeypatch):
    rows = [
        {"id": n, "image": f"coco/{n}.jpg", "conversations": [{"value": "q"}, {"value": f"Caption {n}."}]}
        for n in range(5)
    ]
    rows[3]["conversations"][1]["value"] = "  "
    path = tmp_path / "share.json"
    path.write_text(json.dumps(rows))
    records, counts = read_caption_records(path)
    assert [(r.image, r.long) for r in records[:2]] == [("coco/0.jpg", "Caption 0."), ("coco/1.jpg", "Caption 1.")]
    assert counts == {"records": 5, "without_caption": 1}
    monkeypatch.setattr(captions, "_STREAM_BYTES", 10)
    assert read_caption_records(path)[0] == records
    rows[2] = {"image": "x.jpg", "caption": "other layout"}
    path.write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"record 2 lacks 'conversations'.*image, caption.*pairs, webdataset"):
        read_caption_records(path)


def test_coco_captions_group_by_image_and_every_policy_has_a_text(tmp_path):
    data = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 40, "height": 30}, {"id": 8, "file_name": "b.jpg"}],
        "annotations": [{"image_id": 7, "caption": c} for c in ("one", "two")],
    }
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(data))
    records, counts = read_caption_records(path)
    assert [(r.id, r.short, r.size) for r in records] == [(7, ["one", "two"], (40, 30))]
    assert counts["without_caption"] == 1
    for name in ("prefix", "subset", "full", "short", "drop-first"):
        drawn = {CaptionPolicy(name)("", ["one", "two"], np.random.default_rng(n)) for n in range(20)}
        assert drawn == {"one", "two"}
    data["annotations"].append({"image_id": 99, "caption": "nobody"})
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="1 images have captions and no entry, e.g. 99"):
        read_caption_records(path)
    path.write_text(json.dumps({"rows": []}))
    with pytest.raises(UserError, match="COCO captions need images"):
        read_caption_records(path)


def test_real_coco_captions(shared):
    records, _ = read_caption_records(shared / "coco_mini_train/captions_train2017.json")
    assert len(records) == 80
    assert sum(len(r.short) for r in records) == 400


def test_pairs_and_shards_give_the_same_pictures(folder, tmp_path):
    shards = write_shards(tmp_path / "shards")
    assert detect_layout(folder) == "pairs"
    assert detect_layout(shards) == detect_layout(shards / "*.tar") == "webdataset"
    pairs = CaptionDataset(str(folder), images={"size": 32})
    packed = CaptionDataset(str(shards), images={"size": 32})
    assert len(pairs) == len(packed) == 6
    assert all(torch.equal(pairs.image(n), packed.image(n)) for n in range(6))
    assert packed.get_data_info(4)["long"] == "Picture 4. More."
    assert (shards / "00000.tar.index.json").is_file()
    again = CaptionDataset(str(shards / "0000*.tar"), images={"size": 32})
    assert torch.equal(again.image(5), pairs.image(5))


def test_broken_sources_are_told(folder, tmp_path):
    shards = write_shards(tmp_path / "shards")
    cut = shards / "00000.tar"
    cut.write_bytes(cut.read_bytes()[:1500])
    with pytest.raises(UserError, match="truncated"):
        read_caption_records(shards)
    with tarfile.open(shards / "00000.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("lone.png"))
    with pytest.raises(UserError, match="no .txt and no .json"):
        read_caption_records(shards)
    (folder / "3.txt").unlink()
    with pytest.raises(UserError, match=r"1 of 6 images .* have no .txt of the same name, e.g. 3.png"):
        read_caption_records(folder)
    for name, content, message in (
        ("text.json", "plain text", "is not a caption file"),
        ("empty.json", "[]", "JSON list of records"),
        ("cut.json", '[{"image": ', "not valid JSON"),
        ("absent.json", None, "No caption file at"),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=message):
            read_caption_records(tmp_path / name)
    with pytest.raises(UserError, match="layout"):
        read_caption_records(folder, "pair")
    for p in folder.glob("*.txt"):
        p.write_text("   ")
    (folder / "3.txt").write_text("\n")
    with pytest.raises(UserError, match="no image with a non-blank caption"):
        read_caption_records(folder)


def test_an_image_that_cannot_be_read_is_replaced_and_told(folder):
    (folder / "2.png").write_bytes(b"not an image")
    (folder / "3.png").unlink()
    (folder / "3.png").symlink_to(folder / "nowhere.png")
    data = CaptionDataset(str(folder), images={"size": 32})
    sample = data[2]
    assert "2.png cannot be read" in sample["data_samples"].replaced
    assert torch.equal(sample["inputs"], data.image(4))
    assert sample["data_samples"].drawn_captions[0].startswith("Picture 4")
    assert "replaced" not in data[4]["data_samples"]
    with pytest.raises(UserError, match=r"2.png cannot be read"):
        CaptionDataset(str(folder), images={"size": 32}, test_mode=True)[2]


def test_samples_depend_on_seed_epoch_and_index_alone(folder):
    def all_of(workers):
        data = CaptionDataset(
            str(folder), images={"size": 32, "flip": 0.5}, texts={"context_length": 77, "left_pad": 0.5}, seed=3
        )
        order = [i + 6 * e for e in range(3) for i in range(6)]
        loader = DataLoader(data, batch_size=2, sampler=order, num_workers=workers, collate_fn=list)
        return [(s["inputs"].sum().item(), s["data_samples"].drawn_tokens) for batch in loader for s in batch]

    found = all_of(0)
    assert found == all_of(2)
    assert len({str(f) for f in found}) > 9
    data = CaptionDataset(str(folder), images={"size": 32}, seed=3)
    data.set_epoch(2)
    ahead = CaptionDataset(str(folder), images={"size": 32}, seed=3)
    assert data[1]["data_samples"].drawn_captions == ahead[13]["data_samples"].drawn_captions


def test_workers_tokenise_as_the_model_would(folder):
    data = CaptionDataset(str(folder), images={"size": 32}, texts={"policy": "full", "context_length": 77})
    (ids,) = data[0]["data_samples"].drawn_tokens
    assert ids == tokenize("Picture 0. It has noise. Nothing else.", 77, pad_to_longest=True)[0].tolist()
    short = CaptionDataset(str(folder), images={"size": 32}, texts={"policy": "full", "context_length": 6})
    assert len(short[0]["data_samples"].drawn_tokens[0]) == 6
    with pytest.raises(UserError, match="left_pad moves tokens"):
        CaptionDataset(str(folder), images={"size": 32}, texts={"left_pad": 0.5})


@given(st.integers(1, 30), st.integers(0, 10_000))
def test_left_padding_keeps_the_text_and_fits(length, seed):
    ids = [49406, *range(1, length + 1), 49407]
    padded = pad_left(ids, 40, np.random.default_rng(seed))
    assert padded[0] == 49406
    assert padded[-1] == 49407
    assert len(padded) <= 40
    assert [i for i in padded if i] == ids


def test_policies_of_several_texts():
    assert [p.names for p in policies_of("full+short", 1)] == [["full"], ["short"]]
    assert len(policies_of("prefix", 3)) == 3
    found = {CaptionPolicy("drop-first")(LONG, (), np.random.default_rng(n)) for n in range(40)}
    assert found == {"Then a second", "The last.", "Then a second. The last."}
    for bad in (["full", "shrt"], [], {"full+short": 1.0}):
        with pytest.raises(UserError):
            policies_of(bad, 1)


@given(st.integers(20, 300), st.integers(20, 300), st.sampled_from(["crop", "pad", "squash"]))
def test_boxes_of_the_square_lie_where_the_picture_does(width, height, fit):
    """A white box in a black image is at the box's position, within one or two pixels of resampling."""
    canvas = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = width // 4, height // 4, width // 4 + width // 2, height // 4 + height // 2
    canvas[y1:y2, x1:x2] = 255
    square = np.array(fit_square(Image.fromarray(canvas), 64, fit))[..., 0]
    inside = square > 127
    if fit == "pad":
        inside &= square != 123
    box = square_boxes(np.array([[x1, y1, x2, y2]]), (width, height), 64, fit)[0]
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    assert np.abs(found - box).max() <= 2


@pytest.mark.parametrize(("fit", "far"), [("crop", (64, 64)), ("pad", (64, 32)), ("squash", (64, 64))])
def test_a_box_over_the_whole_picture_reaches_its_last_pixel(fit, far):
    assert square_boxes(np.array([[0, 0, 80, 40]]), (80, 40), 64, fit).tolist() == [[0, 0, *far]]
    assert square_boxes(np.array([[-9, -9, 999, 999]]), (80, 40), 64, fit).tolist() == [[0, 0, 64, 64]]


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize(("fit", "side", "left"), [("crop", 40, 3), ("pad", 80, 23)])
def test_boxes_of_regions_and_their_texts_are_mirrored_with_the_picture(tmp_path, flip, fit, side, left):
    """A red patch is inside its box, pixel by pixel, flipped or not."""
    image = Image.new("RGB", (80, 40), (0, 0, 255))
    image.paste((255, 0, 0), (23, 10, 35, 30))
    image.save(tmp_path / "1.png")
    images = [{"id": 1, "file_name": "1.png", "width": 80, "height": 40}]
    said = [{"id": 1, "image_id": 1, "caption": "A cup."}]
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [23, 10, 12, 20], "area": 240}]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": said}))
    (tmp_path / "instances.json").write_text(
        json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cup"}]})
    )
    data = CaptionDataset(
        "captions.json",
        data_root=str(tmp_path),
        images={"size": side, "fit": fit, "flip": flip},
        texts={"policy": "full"},
        regions={"file": "instances.json", "pattern": "{category} on the left", "template": "{}"},
    )
    sample = data[0]
    facts = sample["data_samples"]
    x = side - left - 12 if flip else left
    assert facts.region_boxes == [[x, 10, x + 12, 30]]
    assert facts.region_texts == ["cup on the right" if flip else "cup on the left"]
    red = (sample["inputs"] == torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]).all(0)
    assert red[10:30, x : x + 12].all()
    assert red.sum() == 12 * 20


def test_the_cache_gives_what_the_transform_gives(folder, tmp_path):
    (folder / "4.png").write_bytes(b"broken")
    data = CaptionDataset(str(folder), images={"size": 32})
    cache = ImageCache(tmp_path / "cache", data.names(), 32, "crop", create=True)
    assert cache.get(0) is None
    for n in (0, 1, 2, 3, 5):
        cache.put(n, data.read_image(n))
    cache.put(4, None)
    assert cache.get(0) is None
    cache.flush()
    fast = CaptionDataset(str(folder), images={"size": 32, "cache": str(tmp_path / "cache")})
    read = data.image(0)
    for p in folder.glob("*.png"):
        p.unlink()
        Image.new("RGB", (8, 8)).save(p)
    assert torch.equal(fast.image(0), read)
    assert not torch.equal(data.image(0), fast.image(0))
    assert cache.rows[4] == BROKEN
    assert "could not be read when the cache" in fast[4]["data_samples"].replaced
    some = CaptionDataset(str(folder), images={"size": 32, "cache": str(tmp_path / "cache")}, indices=[3, 1])
    assert torch.equal(some.image(0), fast.image(3))
    for options, message in (
        ({"size": 16}, "image_size 32"),
        ({"fit": "pad"}, "fit crop"),
        ({}, "names"),
    ):
        images = {"size": 32, **options, "cache": str(tmp_path / "cache")}
        with pytest.raises(UserError, match=message):
            CaptionDataset(str(folder), images=images, skip=int(not options))
    with pytest.raises(UserError, match="create it with tools/data/cache_images.py"):
        CaptionDataset(str(folder), images={"size": 32, "cache": str(tmp_path / "none")})
    assert open_rgb(folder / "0.png").size == (8, 8)


def stream(size, batch, rank=0, world=1, start=0, seed=0):
    sampler = EpochStreamSampler(range(size), seed=seed)
    sampler.rank, sampler.world_size = rank, world
    batches = StreamBatches(sampler, batch)
    batches.start = start
    return batches


def first(batches, count):
    found = iter(batches)
    return [next(found) for _ in range(count)]


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 4), st.integers(0, 20))
def test_streams_see_every_image_once_an_epoch_and_start_anywhere(size, batch, world, start):
    if size < world:
        with pytest.raises(UserError, match="are too few for"):
            stream(size, batch, 0, world)
        return
    ranks = [stream(size, batch, r, world) for r in range(world)]
    steps = len(ranks[0])
    seen = [i for r in ranks for b in first(r, steps) for i in b]
    assert len(seen) == len(set(seen)) == size - ranks[0].left_out
    assert all(0 <= i < size for i in seen)
    following = [i for r in ranks for b in first(r, 2 * steps)[steps:] for i in b]
    assert all(size <= i < 2 * size for i in following)
    assert all(b for r in ranks for b in first(r, steps))
    resumed = stream(size, batch, world - 1, world, start=start)
    assert first(resumed, 3) == first(ranks[-1], start + 3)[start:]

"""Named retrieval sets, saved vectors, classification, published results: sizes, small files, tools end to end."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from smartclip_det.core.errors import UserError
from smartclip_det.formats import caption_sets
from smartclip_det.formats.caption_sets import PROTOCOLS, load_protocol
from smartclip_det.formats.labelled_images import read_labelled
from smartclip_det.formats.retrieval_vectors import RetrievalVectors
from smartclip_det.metrics.classification import accuracies
from smartclip_det.metrics.retrieval import modes_of, ranks_of, recall_metrics
from smartclip_det.protocols.published import PUBLISHED, published_values, verdict
from smartclip_det.protocols.registry import compare, evaluate
from tests.tools.test_runs import run


def coco(root, images=5000, captions=5):
    (root / "annotations").mkdir(parents=True)
    data = {
        "images": [{"id": n, "file_name": f"{n:012d}.jpg"} for n in range(images)],
        "annotations": [
            {"image_id": n, "caption": f"caption {c} of {n}"} for c in range(captions) for n in range(images)
        ]
        + [{"image_id": 0, "caption": "a sixth"}],
    }
    (root / "annotations/captions_val2017.json").write_text(json.dumps(data))


def flickr(root, images=31014, test=1000):
    rows = [
        {
            "filename": f"{n}.jpg",
            "split": "test" if n < test else "train",
            "sentences": [{"raw": f"{c} of {n}"} for c in range(5)],
        }
        for n in range(images)
    ]
    root.mkdir()
    (root / "dataset_flickr30k.json").write_text(json.dumps({"images": rows}))


def test_full_sets_have_the_sizes_that_their_names_promise(tmp_path):
    coco(tmp_path / "coco")
    images, facts = load_protocol("coco-5k", tmp_path / "coco")
    assert (facts["images"], facts["texts"], facts["set"]) == (5000, 25000, "coco-5k")
    assert images[0].texts == tuple(f"caption {c} of 0" for c in range(5))
    assert images[7].path == tmp_path / "coco/val2017/000000000007.jpg"
    flickr(tmp_path / "flickr")
    assert load_protocol("flickr30k-31014", tmp_path / "flickr")[1]["texts"] == 155070
    assert load_protocol("flickr30k-1k", tmp_path / "flickr")[1]["images"] == 1000
    lines = [f"{n}.jpg#{c}\tcaption {c} of {n}" for n in range(31783) for c in range(5)]
    (tmp_path / "flickr/results_20130124.token").write_text("\n".join(lines))
    assert load_protocol("flickr30k-full", tmp_path / "flickr")[1]["texts"] == 158915
    rows = [
        {"id": n, "image": f"{n}.jpg", "conversations": [{}, {"value": f"First of {n}. Second."}]} for n in range(1003)
    ]
    (tmp_path / "share").mkdir()
    (tmp_path / "share/share-captioner_coco_lcs_sam_1246k_1107.json").write_text(json.dumps(rows))
    whole, first = (load_protocol(f"sharegpt4v-1k{e}", tmp_path / "share")[0] for e in ("", "-first"))
    assert (whole[999].texts, first[999].texts) == (("First of 999. Second.",), ("First of 999",))
    (tmp_path / "docci").mkdir()
    rows = [
        {"split": "test" if n < 5000 else "train", "example_id": f"t{n}", "image_file": f"{n}.jpg", "description": "d"}
        for n in range(5100)
    ]
    (tmp_path / "docci/docci_descriptions.jsonlines").write_text("\n".join(map(json.dumps, rows)))
    assert load_protocol("docci", tmp_path / "docci")[1]["images"] == 5000


def test_parts_are_never_called_by_the_name_of_the_whole(tmp_path):
    coco(tmp_path / "coco", images=4)
    with pytest.raises(UserError, match=r"coco-5k is 5,000 images with 25,000 texts; .* has 4 with 20"):
        load_protocol("coco-5k", tmp_path / "coco")
    assert load_protocol("coco-5k", tmp_path / "coco", partial=True)[1]["set"] == "coco-5k, partial"
    with pytest.raises(UserError, match="No folder at"):
        load_protocol("docci", tmp_path / "absent")
    for name in PROTOCOLS:
        empty = tmp_path / f"empty_{name}"
        empty.mkdir()
        with pytest.raises(UserError):
            load_protocol(name, empty, partial=True)
    with pytest.raises(UserError, match="Nearest: urban1k"):
        load_protocol("urban-1k", tmp_path)
    flickr_file = tmp_path / "flickr"
    flickr_file.mkdir()
    (flickr_file / "dataset_flickr30k.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(UserError, match="unexpected layout"):
        load_protocol("flickr30k-1k", flickr_file)


def test_other_layouts_by_hand(tmp_path):
    urban = tmp_path / "urban"
    (urban / "image").mkdir(parents=True)
    (urban / "caption").mkdir()
    (urban / "image/7.jpg").write_bytes(b"")
    (urban / "caption/7.txt").write_text("First line.\nSecond line.")
    assert load_protocol("urban1k", urban, partial=True)[0][0].texts == ("First line.",)
    dci = tmp_path / "dci"
    (dci / "annotations").mkdir(parents=True)
    (dci / "annotations/a.json").write_text(json.dumps({"image": "a.jpg", "short_caption": "S", "extra_caption": "E"}))
    assert load_protocol("dci", dci, partial=True)[0][0].texts == ("S\nE",)
    iiw = tmp_path / "iiw"
    iiw.mkdir()
    (iiw / "iiw400.jsonl").write_text(json.dumps({"image/key": "aar_1", "IIW": "long"}))
    found = load_protocol("iiw", iiw, partial=True)[0][0]
    assert (found.path.name, found.texts) == ("aar_1.jpg", ("long",))


def test_real_long_captions_are_read(shared, tmp_path, monkeypatch):
    source = shared / "long_captions/iiw400.jsonl"
    (tmp_path / "iiw400.jsonl").write_bytes(source.read_bytes())
    images, facts = load_protocol("iiw", tmp_path, partial=True)
    assert facts["set"] == "iiw, partial"
    assert len(images) == 200
    assert all(i.texts[0].strip() for i in images)


def vectors(seed=0, masks=True):
    g = torch.Generator().manual_seed(seed)
    hard = (torch.rand(8, 6, generator=g) < 0.7).float() if masks else None
    return RetrievalVectors(
        torch.randn(4, 6, generator=g),
        torch.randn(8, 6, generator=g),
        torch.arange(4).repeat_interleave(2),
        hard,
        [f"i{n}" for n in range(4)],
        [f"text {n}" for n in range(8)],
        {"set": "made"},
    )


def annotations(path):
    data = {
        "images": [{"id": f"i{n}", "file_name": f"{n}.jpg"} for n in range(4)],
        "annotations": [{"image_id": f"i{n}", "caption": f"text {2 * n + c}"} for n in range(4) for c in range(2)],
    }
    path.write_text(json.dumps(data))
    return path


def test_saved_vectors_score_the_same_and_compare(tmp_path):
    ann = annotations(tmp_path / "ann.json")
    own = vectors()
    own.save(tmp_path / "a.safetensors")
    vectors(1).save(tmp_path / "b.safetensors")
    result = evaluate("retrieval", ann, tmp_path / "a.safetensors")
    assert result.metrics == recall_metrics(own, modes_of(own))
    assert set(modes_of(own)) == {"hard", "off", "random", "shuffled"}
    assert result.protocol["set"] == "made"
    files = (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    _, outcome = compare("retrieval", ann, *files, resamples=20, progress=False, scoring="hard")
    assert outcome["t2i_r1"]["a"] == result.metrics["t2i_r1_hard"]
    assert outcome["i2t_r5"]["difference"] == outcome["i2t_r5"]["b"] - outcome["i2t_r5"]["a"]


def test_vectors_that_do_not_fit_are_refused(tmp_path):
    from safetensors.torch import save_file

    ann = annotations(tmp_path / "ann.json")
    part = vectors()
    part.image_ids[2] = "other"
    part.save(tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="not in .*, e.g. other"):
        evaluate("retrieval", ann, tmp_path / "foreign.safetensors")
    save_file({"image_embeds": torch.zeros(2, 3)}, str(tmp_path / "half.safetensors"))
    with pytest.raises(UserError, match="lacks image_of_text, text_embeds"):
        RetrievalVectors.load(tmp_path / "half.safetensors")
    wrong = {"image_embeds": torch.zeros(2, 3), "text_embeds": torch.zeros(2, 4), "image_of_text": torch.zeros(2)}
    save_file(wrong, str(tmp_path / "wrong.safetensors"))
    with pytest.raises(UserError, match="do not match"):
        RetrievalVectors.load(tmp_path / "wrong.safetensors")
    wrong |= {"text_embeds": torch.zeros(2, 3), "image_of_text": torch.tensor([0, 5])}
    save_file(wrong, str(tmp_path / "rows.safetensors"))
    with pytest.raises(UserError, match="outside the 2 images"):
        RetrievalVectors.load(tmp_path / "rows.safetensors")
    with pytest.raises(UserError, match="needs masks"):
        ranks_of(vectors(masks=False), "hard")


def test_accuracies_by_hand_with_ties_against_us():
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.5, 0.0], [0.1, 0.2, 0.7], [0.9, 0.0, 0.1]])
    found = accuracies(scores, torch.tensor([0, 1, 2, 2]))
    assert found["top1"] == 0.5
    assert found["mean_per_class"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["top5"] == 1.0
    assert accuracies(torch.full((2, 9), float("nan")), torch.tensor([0, 1]))["top5"] == 0.0


def test_class_folders_and_cifar_files(tmp_path):
    for name in ("n02", "n01"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "set" / name / "a.png")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    found = read_labelled(tmp_path / "set", tmp_path / "names.txt")
    assert (found.names, found.labels.tolist()) == (["cat", "dog"], [0, 1])
    (tmp_path / "names.json").write_text(json.dumps({"n01": "cat", "n3": "dog"}))
    with pytest.raises(UserError, match="n02"):
        read_labelled(tmp_path / "set", tmp_path / "names.json")
    (tmp_path / "short.txt").write_text("cat\n")
    with pytest.raises(UserError, match="1 names for 2 class folders"):
        read_labelled(tmp_path / "set", tmp_path / "short.txt")
    cifar = tmp_path / "cifar"
    cifar.mkdir()
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    row = np.concatenate([[3], [1], image.transpose(2, 0, 1).ravel()]).astype(np.uint8)
    np.concatenate([row, row]).tofile(cifar / "test.bin")
    (cifar / "fine_label_names.txt").write_text("apple\naquarium_fish\n")
    found = read_labelled(cifar)
    assert (found.names, found.labels.tolist()) == (["apple", "aquarium fish"], [1, 1])
    assert np.array_equal(np.array(found.open(1)), image)
    row[:-5].tofile(cifar / "test.bin")
    with pytest.raises(UserError, match="not a multiple"):
        read_labelled(cifar)
    with pytest.raises(UserError, match="No folder"):
        read_labelled(tmp_path / "absent")


class Python2Pickler(pickle._Pickler):
    """Strings and bytes as Python 2 pickled both: byte strings."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        content = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_string


def python_2_pickle(content, path):
    """Like CIFAR's files: protocol 2, and arrays of old numpy."""
    with path.open("wb") as handle:
        Python2Pickler(handle, protocol=2).dump(content)
    path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))


@pytest.mark.parametrize(
    ("meta", "test", "names", "labels"),
    [("batches.meta", "test_batch", "label_names", "labels"), ("meta", "test", "fine_label_names", "fine_labels")],
)
def test_cifar_pickles_are_read_and_nothing_in_them_is_run(tmp_path, meta, test, names, labels):
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    rows = images.transpose(0, 3, 1, 2).reshape(3, 3072)
    python_2_pickle({names: ["apple", "aquarium_fish"]}, tmp_path / meta)
    python_2_pickle({"data": rows, labels: [1, 0, 1], "filenames": ["a", "b", "c"]}, tmp_path / test)
    found = read_labelled(tmp_path)
    assert (found.names, found.labels.tolist()) == (["apple", "aquarium fish"], [1, 0, 1])
    assert all(np.array_equal(np.array(found.open(n)), images[n]) for n in range(3))
    python_2_pickle({"data": rows, labels: [1, 0, 2]}, tmp_path / test)
    with pytest.raises(UserError, match="3 labels of 2 classes"):
        read_labelled(tmp_path)
    python_2_pickle({"data": rows}, tmp_path / test)
    with pytest.raises(UserError, match="are not CIFAR files"):
        read_labelled(tmp_path)
    python_2_pickle({"data": rows, labels: Path("x")}, tmp_path / test)
    with pytest.raises(UserError, match=r"refers to pathlib.*no code in it was run"):
        read_labelled(tmp_path)


def test_anchors_pass_at_their_tolerance_and_fail_beyond():
    found = published_values("smartclip-b16", ["coco-5k", "sharegpt4v-1k"])
    assert [(a.metric, a.percent) for a in found] == [
        ("i2t_r1_off", 62.0),
        ("t2i_r1_off", 42.6),
        ("i2t_r1_off", 98.3),
        ("t2i_r1_off", 97.8),
    ]
    assert verdict(found[0], 0.623)["passed"]
    assert not verdict(found[0], 0.6231)["passed"]
    with pytest.raises(UserError, match="smartclip-b16"):
        published_values("smartclip-b32", ["coco-5k"])
    with pytest.raises(UserError, match="coco-5k"):
        published_values("clip-b16", ["coco5k"])
    assert all(a.set == "imagenet" or a.set in PROTOCOLS for model in PUBLISHED.values() for a in model)
    assert caption_sets.PROTOCOLS["coco-5k"].texts == 25_000


@pytest.mark.slow
def test_the_tools_end_to_end(shared, tmp_path):
    source = shared / "coco_mini_train"
    out, saved = tmp_path / "captions.json", tmp_path / "v.safetensors"
    done = run(
        "tools/retrieval.py",
        "captions",
        "--data",
        source / "captions_train2017.json",
        "--images",
        source / "images",
        "--arch",
        "SmartCLIP-tiny",
        "--workers",
        "0",
        "--vectors",
        saved,
        "--out",
        out,
    )
    found = json.loads(out.read_text())
    assert (found["protocol"]["images"], found["protocol"]["texts"]) == (80, 400)
    assert "t2i_r1_hard" in done.stdout
    run(
        "tools/evaluate.py",
        "retrieval",
        "--ann",
        source / "captions_train2017.json",
        "--pred",
        saved,
        "--out",
        tmp_path / "again.json",
    )
    assert json.loads((tmp_path / "again.json").read_text())["metrics"] == found["metrics"]
    checkpoint = tmp_path / "towers.safetensors"
    from smartclip_det.models.towers import SmartCLIP

    SmartCLIP.from_arch("SmartCLIP-tiny").save(checkpoint)
    coco(tmp_path / "coco", images=3)
    (tmp_path / "coco/val2017").mkdir()
    for n in range(3):
        Image.new("RGB", (70, 64), (80 * n, 9, 9)).save(tmp_path / f"coco/val2017/{n:012d}.jpg")
    done = run(
        "tools/verify_checkpoint.py",
        "smartclip-b16",
        checkpoint,
        f"coco-5k={tmp_path}/coco",
        "--partial",
        "--workers",
        "0",
        "--out",
        tmp_path / "verify.json",
        check=False,
    )
    assert done.returncode == 1, done.stderr
    told = json.loads((tmp_path / "verify.json").read_text())
    assert told["metrics"] == {"passed": False}
    assert [r["published"] for r in told["anchors"]] == [62.0, 42.6]
    done = run(
        "tools/verify_checkpoint.py",
        "smartclip-b16",
        checkpoint,
        f"coco-5k={tmp_path}/coco",
        "--workers",
        "0",
        "--out",
        tmp_path / "verify.json",
        check=False,
    )
    assert done.returncode == 2
    assert "coco-5k is 5,000 images" in done.stderr
    done = run(
        "tools/classify.py",
        shared / "coco_mini_train",
        "--arch",
        "SmartCLIP-tiny",
        "--templates",
        "photo",
        "--workers",
        "0",
        "--out",
        tmp_path / "classes.json",
    )
    assert "top1_off" in done.stdout

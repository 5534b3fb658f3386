"""Predictions scored by the metric of a run and by the command line: equal metrics, equal stamps."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from smartclip_det.core.errors import UserError
from smartclip_det.formats.expressions.jsonl import write_expressions
from smartclip_det.formats.expressions.record import Expression
from smartclip_det.formats.segmentations import encode_mask
from smartclip_det.protocols.alignment_metric import AlignmentMetric
from smartclip_det.protocols.detection_metric import OpenVocabMetric
from smartclip_det.protocols.options import OPTIONS, names_of
from smartclip_det.protocols.referring_metric import ReferringMetric
from smartclip_det.protocols.registry import OF_DETECTIONS, OF_MASKS, OF_SENTENCES, PROTOCOLS, evaluate

SIDE = 64
NAMES = ("red cat", "dog without a lead", "bus")


def rectangle(box):
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    x1, y1, x2, y2 = (round(v) for v in box)
    mask[y1:y2, x1:x2] = True
    return mask


def random_boxes(rng, count):
    corner, side = rng.uniform(0, 40, (count, 2)), rng.uniform(4, 20, (count, 2))
    return np.concatenate([corner, corner + side], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def detections(tmp_path_factory):
    """Annotations with the fields of every protocol, a split, and detections near and far from them."""
    root, rng = tmp_path_factory.mktemp("detections"), np.random.default_rng(0)
    categories = [
        {"id": 7 - k, "name": n, "frequency": f, "is_negative": k == 1}
        for k, (n, f) in enumerate(zip(NAMES, "rcf", strict=True))
    ]
    images, annotations, samples = [], [], []
    for i in range(1, 7):
        # The last image has no annotation: images=annotated leaves it out.
        truth = random_boxes(rng, 3 if i < 6 else 0)
        images.append(
            {
                "id": i,
                "file_name": f"{i}.jpg",
                "width": SIDE,
                "height": SIDE,
                "sent_ids": [7, 6],
                "neg_category_ids": [5, 6, 7],
                "not_exhaustive_category_ids": [5] if i == 2 else [],
            }
        )
        for k, (x1, y1, x2, y2) in enumerate(truth.tolist()):
            mask = rectangle((x1, y1, x2, y2))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": 7 - k % 3,
                    "iscrowd": 0,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(mask.sum()),
                    "difficult": k == 2,
                    "segmentation": encode_mask(mask),
                    "neg_category_ids": [5],
                }
            )
        boxes = np.clip(np.concatenate([truth + rng.normal(0, 1, truth.shape), random_boxes(rng, 4)]), 0, SIDE)
        samples.append(
            {
                "img_id": i,
                "pred_instances": {
                    "bboxes": torch.tensor(boxes, dtype=torch.float32),
                    "scores": torch.tensor(np.r_[np.ones(len(truth)), np.zeros(4)] + rng.random(len(boxes))).float()
                    / 2,
                    "labels": torch.tensor([*range(len(truth)), *rng.integers(0, 3, 4)]),
                    "masks": torch.tensor(np.stack([rectangle(b) for b in boxes])),
                },
            }
        )
    (root / "ann.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    (root / "split.json").write_text(json.dumps({"base": NAMES[:2], "novel": NAMES[2:]}))
    return root, samples


CASES = [
    ("coco", {}),
    ("coco", {"max_dets": 3, "images": "annotated"}),
    ("coco", {"iou_type": "segm"}),
    ("ov-coco", {"split_file": "split.json"}),
    ("ov-coco", {"split_file": "split.json", "backend": "reference"}),
    ("lvis", {}),
    ("lvis", {"max_dets": 2}),
    ("ov-lvis", {"iou_type": "segm", "max_dets": -1}),
    ("lvis-fixed", {}),
    ("voc", {"difficult": "ignore"}),
    ("dcube", {}),
    ("dcube", {"scenario": "inter"}),
    ("fgovd", {}),
]


@pytest.mark.parametrize(("protocol", "options"), CASES)
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_detections(detections, tmp_path, protocol, options, suffix):
    root, samples = detections
    masks = options.get("iou_type") == "segm"
    if masks and suffix != ".json":
        pytest.skip("columns hold boxes")
    metric = OpenVocabMetric(
        "ann.json",
        data_root=str(root),
        protocol=protocol,
        out_file=str(tmp_path / f"out{suffix}"),
        metrics_file=str(tmp_path / "m.json"),
        iou_types=["segm" if masks else "bbox"],
        **{k: v for k, v in options.items() if k != "iou_type"},
    )
    metric.dataset_meta = {"classes": NAMES}
    for sample in samples:
        metric.process(None, [sample])
    metrics = metric.evaluate(len(samples))
    run = json.loads((tmp_path / "m.json").read_text())
    given = {k: root / v if k == "split_file" else v for k, v in options.items()}
    file = evaluate(protocol, root / "ann.json", tmp_path / f"out{suffix}", **given)
    assert metrics == run["metrics"] == file.metrics
    assert max(metrics.values()) > 0
    assert run["protocol"] == json.loads(json.dumps(file.protocol, default=str))
    assert run["counts"] == file.counts
    assert run["per_class"] == file.per_class


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """Sentences with one target each, sentences with up to two, and predictions near and far from them."""
    root, rng = tmp_path_factory.mktemp("sentences"), np.random.default_rng(1)
    groups = {"one": [1] * 8, "any": [0, 1, 2, 1, 0, 2, 1, 1]}
    for name, numbers in groups.items():
        rows, answers = [], []
        for n, count in enumerate(numbers):
            boxes = tuple(tuple(map(float, b)) for b in random_boxes(rng, count))
            rows.append(
                Expression(
                    n,
                    n // 2,
                    "a.jpg",
                    f"sentence {n}",
                    boxes,
                    SIDE,
                    SIDE,
                    split="val",
                    masks=tuple(encode_mask(rectangle(b)) for b in boxes),
                    category=f"o365_{n % 3}",
                )
            )
            found = [list(np.add(b, rng.normal(0, 1, 4))) for b in boxes] + random_boxes(rng, 1).tolist()
            found = [[min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1] for a, b, c, d in found]
            scores = np.sort(rng.random(len(found)))[::-1].tolist()
            mask = rectangle(np.clip(found[0], 0, SIDE)) if n % 4 else np.zeros((SIDE, SIDE), dtype=bool)
            answers.append({"id": n, "boxes": found, "scores": scores, "mask": mask})
        write_expressions(root / f"{name}.jsonl", rows)
        groups[name] = answers
    return root, groups


@pytest.mark.parametrize("options", [{}, {"split": "val"}, "own"])
@pytest.mark.parametrize("protocol", OF_SENTENCES)
def test_sentences(sentences, tmp_path, protocol, options):
    root, groups = sentences
    own = {
        "refcoco": {"strict": True, "overlap": "giou"},
        "grefcoco": {"score_threshold": 0.3, "overlap": "iou"},
        "flickr": {"box_rule": "merged"},
    }
    options = own.get(protocol, {}) if options == "own" else options
    name = "one" if protocol in ("refcoco", "ref-l4", "refseg") else "any"
    metric = ReferringMetric(
        f"{name}.jsonl",
        data_root=str(root),
        protocols=[protocol],
        out_file=str(tmp_path / "out.jsonl"),
        metrics_file=str(tmp_path / "m.json"),
        **options,
    )
    metric.process(None, [{"grounded": groups[name][:3]}, {"grounded": groups[name][3:]}])
    metrics = metric.evaluate(2)
    run = json.loads((tmp_path / "m.json").read_text())
    pred = tmp_path / ("out.masks.jsonl" if protocol in OF_MASKS else "out.jsonl")
    file = evaluate(protocol, root / f"{name}.jsonl", pred, **options)
    assert metrics == run["metrics"] == file.metrics
    assert max(metrics.values()) > 0
    assert run["protocol"] == json.loads(json.dumps(file.protocol, default=str))
    assert run["counts"] == {protocol: file.counts}


def test_retrieval(tmp_path):
    generator = torch.Generator().manual_seed(0)
    metric = AlignmentMetric(
        scorings=["hard", "off", "random", "shuffled"],
        out_file=str(tmp_path / "v.safetensors"),
        metrics_file=str(tmp_path / "m.json"),
        stamp={"checkpoint_sha256": "abc"},
    )
    rows = []
    for n in range(6):
        image, texts = torch.randn(8, generator=generator), [f"text {n} {k}" for k in range(2)]
        rows += [{"image_id": n, "caption": t} for t in texts]
        features = [
            (image + torch.randn(8, generator=generator), (torch.rand(8, generator=generator) < 0.7).float())
            for _ in texts
        ]
        metric.process(
            None,
            [
                {
                    "img_id": n,
                    "image_embed": image,
                    "captions": {"short": texts},
                    "presence_scores": {},
                    "text_features": {"short": features},
                    "present": {},
                }
            ],
        )
    metrics = metric.evaluate(6)
    (tmp_path / "ann.json").write_text(
        json.dumps({"images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(6)], "annotations": rows})
    )
    file = evaluate("retrieval", tmp_path / "ann.json", tmp_path / "v.short.safetensors")
    for name, value in file.metrics.items():
        recall, _, mode = name.rpartition("_")
        assert metrics[f"{recall}_short_{mode}"] == value
    assert metrics["t2i_r1_short"] == file.metrics["t2i_r1_hard"] > 0
    told = json.loads((tmp_path / "m.json").read_text())["protocol"]
    files = {"ann_sha256", "pred_sha256"}
    shared = {"name", "command", "code", "versions"}
    assert told["retrieval"]["short"] == {k: v for k, v in file.protocol.items() if k not in files | shared}
    assert {k: told[k] for k in shared - {"name"}} == {k: file.protocol[k] for k in shared - {"name"}}


class _Truth:
    """A drop is in images 0 and 1, a heart in 1 and 2; a red drop in 0, a red heart in 2."""

    def table(self, captions, image_ids):
        answers = {"a drop": [1, 1, 0], "a heart": [0, 1, 1], "a red drop": [1, 0, 0]}
        return np.array([[bool(answers[c][i]) for i in image_ids] for c in captions])


def test_every_picture_that_a_caption_is_true_of_counts(tmp_path):
    metric = AlignmentMetric(
        scorings=["hard", "off", "random", "shuffled"], metrics_file=str(tmp_path / "m.json"), binding="colour_shape"
    )
    classes = ["red drop", "blue drop", "blue heart", "red heart"]
    metric.dataset_meta = {
        "truth": _Truth(),
        "phrases": {"held_out": ["red drop"]},
        "vocabularies": {"colour_shape": classes},
    }
    axis = torch.eye(3)
    vectors = {"a drop": axis[0] + 0.5 * axis[1] + 0.1 * axis[2], "a heart": axis[0] + axis[2], "a red drop": axis[0]}
    masks = {"a drop": torch.ones(3), "a heart": torch.tensor([0.0, 0.0, 1.0]), "a red drop": torch.ones(3)}
    present = (["red drop"], ["blue drop", "red heart"], ["blue heart"])
    # With plain cosine, image 1 ranks above image 0 for a red drop.
    cosines = torch.tensor([[0.5, 0.1, 0.1, 0.1], [0.7, 0.9, 0.1, 0.9], [0.1, 0.1, 0.9, 0.1]])
    for n, said in enumerate((["a drop", "a red drop"], ["a drop"], ["a heart"])):
        metric.process(
            None,
            [
                {
                    "img_id": n,
                    "image_embed": axis[n],
                    "captions": {"short": said},
                    "present": {"colour_shape": present[n]},
                    "text_features": {"short": [(vectors[t], masks[t]) for t in said]},
                    "presence_scores": {"colour_shape": {"hard": cosines[n].flip(0), "off": cosines[n]}},
                }
            ],
        )
    metrics = metric.evaluate(3)
    # "a drop" finds 0 and 1 first; "a heart" finds 2 first and 1 last, tied with 0 by its mask, after it without one.
    assert metrics["map_caption_short_hard"] == pytest.approx((1 + (0.5 + 0.5 * 2 / 3) + 1) / 3)
    assert metrics["map_caption_short_off"] == pytest.approx((1 + (1 / 2 * 1 / 2 + 1 / 2 * 2 / 3) + 1) / 3)
    assert metrics["map_caption_short"] == metrics["map_caption_short_hard"]
    assert metrics["map_caption_held_out_off"] == 1.0
    assert metrics["t2i_r1_short_best"] == 3 / 4
    assert metrics["t2i_r1_short_reader"] == (0.5 + 1 + 0.5 + 0.5) / 4
    assert (metrics["mask_density_short"], metrics["mask_unused_short"]) == (pytest.approx(10 / 12), 0.0)
    # Image 1 shows a red heart and a blue drop: it outranks the red drop's image, not the blue heart's.
    assert metrics["auc_binding_off"] == 0.5
    assert metrics["map_colour_shape_off"] == pytest.approx((0.5 + 3) / 4)
    assert metrics["map_colour_shape_bound_off"] == 1.0
    told = json.loads((tmp_path / "m.json").read_text())["intervals"]
    assert set(told["map_caption_short"]) == {"off", "random", "shuffled"}
    row = told["map_caption_short"]["off"]
    assert row["difference"] == pytest.approx(metrics["map_caption_short_hard"] - metrics["map_caption_short_off"])
    assert set(told["map_colour_shape"]) == {"off"}


def test_every_protocol_is_scored_both_ways():
    assert set(PROTOCOLS) == set(OPTIONS) == {*OF_DETECTIONS, *OF_SENTENCES, "retrieval"}
    assert {p for p, _ in CASES} == set(OF_DETECTIONS)


def test_one_box_of_middling_score_is_answered_alike(tmp_path):
    """A run kept boxes from 0.5 on and the command line from 0.7."""
    box = (1.0, 1.0, 9.0, 9.0)
    write_expressions(tmp_path / "e.jsonl", [Expression(1, 1, "a.jpg", "a", (box,), 20, 20)])
    metric = ReferringMetric(
        "e.jsonl", data_root=str(tmp_path), protocols=["grefcoco"], out_file=str(tmp_path / "p.jsonl")
    )
    metric.process(None, [{"grounded": [{"id": 1, "boxes": [list(box)], "scores": [0.6]}]}])
    metrics = metric.evaluate(1)
    assert metrics == evaluate("grefcoco", tmp_path / "e.jsonl", tmp_path / "p.jsonl").metrics
    assert metrics["f1"] == 0.0
    found = evaluate("grefcoco", tmp_path / "e.jsonl", tmp_path / "p.jsonl", score_threshold=0.5)
    assert found.metrics["f1"] == 1.0


@pytest.mark.parametrize("protocol", OPTIONS)
def test_each_protocol_takes_its_own_options_and_says_which(protocol, tmp_path):
    everything = {n for p in OPTIONS for n in names_of(p)}
    for name in sorted(everything - set(names_of(protocol))):
        with pytest.raises(
            UserError, match=f"{protocol} has no option {name}. It is an option of .*{protocol} takes: "
        ):
            evaluate(protocol, tmp_path, tmp_path, **{name: 1})
    with pytest.raises(UserError, match=f"{protocol} has no option nonsense"):
        evaluate(protocol, tmp_path, tmp_path, nonsense=1)


@pytest.mark.parametrize(
    ("protocol", "options", "message"),
    [
        ("coco", {"max_dets": 0}, "positive limit"),
        ("coco", {"max_dets": "100"}, "integer; given '100'"),
        ("coco", {"max_dets": True}, "integer"),
        ("lvis", {"max_dets": -2}, "-1 for no limit"),
        ("coco", {"backend": "quick"}, "Allowed: fast, reference"),
        ("refcoco", {"strict": "no"}, "true or false"),
        ("grefcoco", {"score_threshold": float("nan")}, "finite"),
        ("coco", {"max_det": 5}, "Nearest: max_dets"),
        ("cocoo", {}, "Nearest: coco"),
    ],
)
def test_wrong_values_are_told(protocol, options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        evaluate(protocol, tmp_path / "a", tmp_path / "b", **options)


def test_options_reach_the_protocols_that_take_them():
    metric = ReferringMetric(
        "e.jsonl", protocols=["refcoco", "grefcoco", "refseg"], overlap="giou", score_threshold=0.2
    )
    assert metric.options["refcoco"].overlap == metric.options["grefcoco"].overlap == "giou"
    assert metric.options["grefcoco"].score_threshold == 0.2
    with pytest.raises(UserError, match="has no option box_rule. It is an option of flickr"):
        ReferringMetric("e.jsonl", protocols=["refcoco", "refseg"], box_rule="any")
    with pytest.raises(UserError, match="interrupted runs"):
        OpenVocabMetric("a.json", images="predicted")
    with pytest.raises(UserError, match="dcube is for boxes"):
        OpenVocabMetric("a.json", protocol="dcube", iou_types=["segm"])

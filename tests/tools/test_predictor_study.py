"""The study of the training-free predictor's options on a tiny world and random towers."""

from __future__ import annotations

import json

import pytest
import torch

from smartclip_det import Predictor
from smartclip_det.core.errors import UserError
from smartclip_det.datasets.toy_world import ToyWorld, WorldConfig, write_world
from smartclip_det.models.boxes import Photograph
from smartclip_det.models.towers import SmartCLIP
from smartclip_det.protocols.registry import evaluate
from smartclip_det.studies import predictor_options as study


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("predictor_options")
    write_world(ToyWorld(WorldConfig(train=1, val=12, test=1, side=64)), root, progress=False, workers=1)
    return root


@pytest.fixture(scope="module")
def towers():
    return SmartCLIP.from_arch("SmartCLIP-toy", seed=0)


def options(world, towers, **changes):
    given = {
        "encoder": [towers],
        "ann": world / "annotations/instances_val.json",
        "images": world / "images/val",
        "split_file": str(world / "annotations/split.json"),
        "device": "cpu",
        "out": world / "options.json",
    }
    return study.PredictorStudyOptions(**{**given, **changes})


def test_the_first_row_is_the_predictor_with_its_defaults_as_the_protocol_scores_it(world, towers, tmp_path):
    o = options(world, towers, only=["softmax", "objectness"])
    table, path = study.measure_predictor(o)
    assert list(table) == [
        study.DEFAULT,
        study.CONTROL,
        "activation softmax",
        "objectness power 0",
        "objectness power 1",
    ]
    written = json.loads(path.read_text())
    assert written["metrics"] == table
    p = Predictor.from_pretrained(towers, boxes=o.ann, device="cpu", use_cache=False, max_boxes=100)
    assert written["protocol"]["default"] == [json.loads(json.dumps(p.protocol))]
    truth = study.load_ground_truth(o.ann)
    ids, results = {n: i for i, n in truth.categories.items()}, []
    for info in truth.data["images"]:
        p.set_image(o.images / info["file_name"])
        results += p.detect(list(ids)).to_coco(info["id"], ids)
    (tmp_path / "pred.json").write_text(json.dumps(results))
    scored = evaluate("ov-coco", o.ann, tmp_path / "pred.json", split_file=o.split_file)
    for metric, (value,) in table[study.DEFAULT].items():
        assert value == pytest.approx(scored.metrics[metric], abs=1e-6), metric
    # Annotated boxes have no objectness to weigh; the control and another activation rank them otherwise.
    assert table["objectness power 0"] == table["objectness power 1"] == table[study.DEFAULT]
    assert table["activation softmax"] != table[study.DEFAULT] != table[study.CONTROL]
    rows = study.rows_of({study.DEFAULT: {"bbox_mAP": [0.25, 0.5]}, "other": {"bbox_mAP": [0.5, 0.25]}})
    assert [(means["bbox_mAP"], better) for _, means, better in rows] == [(0.375, 0), (0.375, 1)]


def test_every_setting_reaches_the_predictor_and_images_are_encoded_once_for_equal_vectors(world, towers):
    o = options(world, towers, limit=2)
    truth = study.chosen_images(full := study.load_ground_truth(o.ann), 3, 2)
    assert truth.data["images"] == full.data["images"][3:5]
    assert len(study.chosen_images(full, 3, 0).data["images"]) == 9
    assert {a["image_id"] for a in truth.data["annotations"]} <= {i["id"] for i in truth.data["images"]}
    one = study._Study(o, truth, towers, study.FileBoxes(o.ann), (["circle"], ["arrow"]))
    seen = {n: json.dumps([(p := one.predictor(c)).protocol, p.templates]) for n, c in one.settings().items()}
    # Each is another predictor, except the control, and what is left out equals the default.
    assert seen.pop(study.CONTROL) == seen[study.DEFAULT]
    assert len(set(seen.values())) == len(seen)
    left_out = [n for n in study.settings_of(towers) if n not in (*seen, study.CONTROL)]
    assert left_out == [
        "temperature 0.5 x learned scale",
        "cell norm none",
        "dense input 1 x",
        "templates photo",
    ]
    assert one._images(one.predictor({})) is one._images(one.predictor({"policy": {"activation": "softmax"}}))
    assert one._images(one.predictor({})) is not one._images(one.predictor({"policy": {"dense_norm": "pixel"}}))


def test_boxes_are_asked_for_once_and_a_detector_proposes_its_own(world):
    asked = []

    class Source:
        def __call__(self, pictures):
            asked.extend(p.name for p in pictures)
            return [p.name for p in pictures]

    boxes = study.RememberedBoxes(Source())
    pictures = [Photograph(None, n) for n in "ab"]
    assert boxes(pictures[:1]) == ["a"]
    assert boxes(pictures) == ["a", "b"]
    assert asked == ["a", "b"]

    class Detector:
        def encode_image(self, image):
            return image.name

        def proposals(self, top_k, *, image):
            return torch.ones(top_k, 4).numpy(), torch.full((top_k,), float(ord(image))).numpy()

    first, second = study.RpnBoxes(Detector(), 3)(pictures)
    assert first.boxes.shape == second.boxes.shape == (3, 4)
    assert second.scores.tolist() == [98.0] * 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"config": "a.py"}, "need both --config and --checkpoint"),
        ({"config": "a.py", "checkpoint": "a.pth", "boxes": "torchvision"}, "two sources of boxes"),
        ({"boxes": "torchvison"}, "Nearest: torchvision"),
        ({"split_file": None}, "person"),
        ({"skip": 12}, "leaves none of the 12 images"),
    ],
)
def test_bad_options_are_told(world, towers, changes, says):
    with pytest.raises(UserError, match=says):
        study.measure_predictor(options(world, towers, **changes))

"""Rescoring the boxes of an annotation file: predictions, metrics and their stamp."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from smartclip_det.apis.region_encoding import RegionEncoding
from smartclip_det.apis.rescoring import InputBoxes, RescoreFileOptions, rescore_file
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.models.region_cache import CachedRegionEncoder
from smartclip_det.models.rescoring import RescoreOptions

BOXES = [[4, 4, 20, 20], [30, 10, 24, 30], [5, 5, 20, 20]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two images with the same three boxes of two classes; the detections have scores and wrong classes."""
    root = tmp_path_factory.mktemp("photos")
    for n in range(2):
        pixels = np.random.default_rng(n).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{n}.png")
    images = [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 48} for n in range(2)]
    found = [(n, k, b) for n in range(2) for k, b in enumerate(BOXES)]
    truth = [
        {"id": i + 1, "image_id": n, "category_id": 1 + k % 2, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
        for i, (n, k, b) in enumerate(found)
    ]
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}]
    (root / "ann.json").write_text(json.dumps({"images": images, "annotations": truth, "categories": categories}))
    rows = [{"image_id": n, "category_id": 2, "bbox": b, "score": 0.9 - 0.2 * k} for n, k, b in found]
    (root / "boxes.json").write_text(json.dumps(rows))
    return root


def rescored(root, out, **options):
    boxes = InputBoxes(str(root / "boxes.json"), **options.pop("boxes", {}))
    encoder = RegionEncoding([{"arch": "SmartCLIP-tiny"}], "cpu", **options.pop("encoder", {}))
    metrics = rescore_file(RescoreFileOptions(root / "ann.json", root, encoder, boxes, out=out, **options))
    stamp = json.loads(out.with_suffix(".metrics.json").read_text())["protocol"]
    return metrics, stamp, json.loads(out.read_text())


def test_boxes_get_classes_and_options_are_stamped(photos, tmp_path):
    metrics, stamp, rows = rescored(
        photos, tmp_path / "p.json", encoder={"views": ["crop", "dense"], "dense_size": 64}, boxes={"nms_iou": 0.5}
    )
    assert all(isinstance(v, float) for v in metrics.values())
    assert (stamp["views"], stamp["dense_size"], stamp["proposal_nms"]) == (["crop", "dense"], 64, 0.5)
    # The third box overlaps the first and has a lower score; every other box may have both classes.
    assert {tuple(r["bbox"]) for r in rows} == {tuple(b) for b in BOXES[:2]}
    assert {r["category_id"] for r in rows} == {1, 2}
    _, _, rows = rescored(photos, tmp_path / "q.json", boxes={"limit": 1})
    assert {tuple(r["bbox"]) for r in rows} == {tuple(BOXES[0])}


def test_detections_may_keep_their_classes(photos, tmp_path):
    _, stamp, rows = rescored(
        photos, tmp_path / "p.json", boxes={"keep_classes": True}, scores=RescoreOptions(own_power=1.0)
    )
    assert stamp["keep_classes"]
    assert {r["category_id"] for r in rows} == {2}
    assert sorted(r["score"] for r in rows) == pytest.approx([0.5, 0.5, 0.7, 0.7, 0.9, 0.9])


def test_policy_and_views_act(photos, tmp_path):
    given = {
        "plain": {},
        "crops": {"encoder": {"views": ["crop"]}},
        "wide crops": {"encoder": {"views": ["crop"], "crop_context": 2.0}},
        "presence": {"policy": ScoringPolicy(presence=1.0)},
        "sigmoid": {"policy": ScoringPolicy(activation="sigmoid", sigmoid_reference="background")},
    }
    scores = {
        name: tuple(sorted(r["score"] for r in rescored(photos, tmp_path / f"{name}.json", **options)[2]))
        for name, options in given.items()
    }
    assert len(set(scores.values())) == len(given)


def test_vectors_are_the_same_from_the_cache(tmp_path):
    image = Image.fromarray(np.random.default_rng(3).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    boxes = [[4, 4, 24, 24], [30, 10, 54, 40]]
    options = {"dense_size": 64, "dense_mode": "vanilla", "crop_context": 1.5}
    plain, cached = (
        RegionEncoding([{"arch": "SmartCLIP-tiny"}], "cpu", cache=c, **options).load()[0] for c in (None, tmp_path)
    )
    assert isinstance(cached, CachedRegionEncoder)
    for encoder in (plain, cached):
        assert (encoder.dense_size, encoder.dense_mode, encoder.crop_context) == (64, "vanilla", 1.5)
    for view in ("crop", "dense"):
        want = plain.vectors(image, boxes, view)
        assert torch.allclose(cached.vectors(image, boxes, view), want)
        assert torch.allclose(cached.vectors(image, boxes, view), want)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2

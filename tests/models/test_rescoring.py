"""Rescoring by hand, the detector type with a real MMDetection proposer, and the tool on real photographs."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from smartclip_det.core.errors import UserError
from smartclip_det.core.presence import log_presence
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank
from smartclip_det.engine.launch import refuse_foreign_checkpoint
from smartclip_det.models.rescoring import RescoreOptions, best_boxes, blend_own_scores, class_scores, detect_in_boxes
from smartclip_det.models.vocabulary import build_bank
from tests.detection.tiny import TOWERS, encoder
from tests.processes import run_process

POLICY = ScoringPolicy(mask_mode="off", background="zero", dense_temperature=1.0)


def test_scores_by_hand():
    bank = TextBank(("x", "y"), torch.eye(2, 4), torch.ones(2, 4))
    views = [torch.tensor([[2.0, 0, 0, 0]]), torch.tensor([[0, 3.0, 0, 0]])]
    # Cosines (1, 0) and (0, 1) average to 1/2 each; background is 0.
    e = torch.tensor([0.5, 0.5, 0.0]).exp()
    assert torch.allclose(class_scores(views, bank, POLICY), (e / e.sum())[None, :2])
    sigmoid = class_scores(views, bank, POLICY.with_(activation="sigmoid"))
    assert torch.allclose(sigmoid, torch.full((1, 2), 0.5).sigmoid())
    with pytest.raises(UserError, match="no learned background"):
        class_scores(views, bank, POLICY.with_(background="text"))


def test_objectness_and_own_scores_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    scores = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    objectness = torch.tensor([0.04, 0.25])
    rows, labels, values = detect_in_boxes(boxes, objectness, scores, RescoreOptions(objectness_power=0.5))
    assert values.tolist() == pytest.approx([0.3, 0.2, 0.18, 0.02])
    assert list(zip(rows.tolist(), labels.tolist(), strict=True)) == [(1, 1), (1, 0), (0, 0), (0, 1)]
    blended = blend_own_scores(objectness, torch.tensor([0, 1]), scores, RescoreOptions(own_power=0.5))
    assert blended.tolist() == pytest.approx([(0.04 * 0.9) ** 0.5, (0.25 * 0.6) ** 0.5])
    assert best_boxes(torch.cat([boxes, boxes + 0.5]), torch.tensor([0.1, 0.9, 0.8, 0.2]), 0.7, 10).tolist() == [1, 2]
    with pytest.raises(UserError, match=r"own_power in \[0, 1\]"):
        RescoreOptions(own_power=2)


@given(st.floats(0, 1), st.integers(0, 1000))
def test_own_power_one_changes_nothing_and_zero_forgets(power, seed):
    g = torch.Generator().manual_seed(seed)
    own, scores = torch.rand(5, generator=g), torch.rand(5, 3, generator=g)
    labels = torch.randint(0, 3, (5,), generator=g)
    assert torch.equal(blend_own_scores(own, labels, scores, RescoreOptions(own_power=1.0)), own)
    zero = blend_own_scores(own, labels, scores, RescoreOptions(own_power=0.0))
    assert torch.equal(zero, scores.gather(1, labels[:, None])[:, 0])
    between = blend_own_scores(own, labels, scores, RescoreOptions(own_power=power))
    assert (between <= torch.maximum(own, zero) + 1e-6).all()


@pytest.fixture(scope="module")
def detector():
    from mmdet.registry import MODELS

    from smartclip_det.engine.config import load_config
    from tests.conftest import REPO

    init_default_scope("mmdet")
    config = load_config(REPO / "configs/rescore/faster-rcnn_smartclip-b16_coco.py", {"towers": dict(TOWERS)}).model
    config.backbone.towers = dict(TOWERS)
    config.proposer.backbone.update(depth=18, init_cfg=None)
    config.proposer.neck.in_channels = [64, 128, 256, 512]
    torch.manual_seed(0)
    built = MODELS.build(config).eval()
    built.set_text_bank(build_bank(encoder(), ["cat", "dog", "bus"], progress=False))
    return built


def samples(scale=0.5):
    from mmdet.structures import DetDataSample

    meta = {"img_shape": (96, 64), "ori_shape": (192, 128), "scale_factor": (scale, scale), "img_id": 1}
    return [DetDataSample(metainfo=meta)]


def test_a_real_proposer_gives_boxes_and_the_tower_classes(detector):
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = detector.predict(images, samples())[0].pred_instances
    assert set(found.label_names) <= {"cat", "dog", "bus"}
    assert len(found.bboxes) == len(found.scores) == len(found.label_names)


def test_classes_and_boxes_follow_the_proposals(detector, monkeypatch):
    """Proposals at known positions: classes are those of pooled features, boxes are in original pixels."""
    from smartclip_det.models.regions import pool_regions

    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.0, 0, 32, 32], [32, 32, 64, 96]])

    def propose(inputs, data, rescale):
        data[0].pred_instances = InstanceData(bboxes=boxes, scores=torch.ones(2), labels=torch.zeros(2).long())
        return data

    monkeypatch.setattr(detector.proposer, "predict", propose)
    monkeypatch.setattr(detector, "options", RescoreOptions(score_threshold=0.0, nms_iou=0.9))
    with torch.no_grad():
        found = detector.predict(images, samples())[0].pred_instances
        dense = torch.nn.functional.normalize(detector.extract_feat(images).float(), dim=1)
        rois = torch.cat([torch.zeros(2, 1), boxes], dim=1)
        expected = class_scores([pool_regions(dense, rois, 8)], detector.text_bank, detector.policy)
    assert len(found) == 6
    for box, label, score in zip(found.bboxes, found.labels, found.scores, strict=True):
        row = 0 if box[0] == 0 else 1
        assert torch.allclose(box, boxes[row] * 2)
        assert score == pytest.approx(float(expected[row, label]), abs=1e-6)


@pytest.mark.parametrize("source", ["pooled", "cells"])
def test_presence_multiplies_what_a_config_detects(detector, monkeypatch, source):
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.0, 0, 32, 32], [32, 32, 64, 96]])

    def propose(inputs, data, rescale):
        data[0].pred_instances = InstanceData(bboxes=boxes, scores=torch.ones(2), labels=torch.zeros(2).long())
        return data

    monkeypatch.setattr(detector.proposer, "predict", propose)
    monkeypatch.setattr(detector, "options", RescoreOptions(score_threshold=0.0, nms_iou=0.9))
    found = {}
    for power in (0.0, 0.7):
        policy = detector.policy.with_(presence=power, presence_source=source, presence_scale=3.0)
        monkeypatch.setattr(detector, "policy", policy)
        with torch.no_grad():
            rows = detector.predict(images, samples())[0].pred_instances
        found[power] = {
            (tuple(b.tolist()), int(n)): float(s) for b, n, s in zip(rows.bboxes, rows.labels, rows.scores, strict=True)
        }
    tower, bank = detector.backbone.image_tower, detector.text_bank
    with torch.no_grad():
        # The image has 96 rows of 64 pixels; cells to the right of it are padding and are ignored.
        picture = tower(images) if source == "pooled" else detector.extract_feat(images)[0, :, :12, :8].flatten(1).t()
        factor = log_presence(picture, bank, policy, mask_mode=policy.dense_mode).exp()
    assert len(found[0.7]) == 6
    for key, score in found[0.0].items():
        assert found[0.7][key] == pytest.approx(score * float(factor[key[1]]), rel=1e-4)


def test_trained_heads_refuse_presence():
    from smartclip_det.models.detectors.open_vocab_rcnn import OpenVocabRCNN

    with pytest.raises(UserError, match="Trained heads have their own scores"):
        OpenVocabRCNN(policy={"presence": 1.0}, backbone={}, neck={}, rpn_head={}, roi_head={})


def test_the_proposer_sees_its_own_statistics(detector):
    """Pixels of constant colour, normalised for the tower, reach the proposer as if preprocessed for it."""
    colour = torch.tensor([200.0, 100.0, 50.0]).view(1, 3, 1, 1).expand(1, 3, 96, 96)
    ours, theirs = detector.data_preprocessor, detector.proposer.data_preprocessor
    sent = detector._for_proposer((colour - ours.mean) / ours.std, samples())
    assert torch.allclose(sent[..., :96, :64], ((colour - theirs.mean) / theirs.std)[..., :96, :64], atol=1e-4)
    assert (sent[..., 64:] == 0).all()


def test_a_checkpoint_of_the_proposer_alone_is_enough(detector, tmp_path):
    from mmengine.runner import load_checkpoint

    state = {k: v.clone() + 1 for k, v in detector.proposer.state_dict().items() if v.is_floating_point()}
    state = {**detector.proposer.state_dict(), **state}
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "proposer.pth")
    before = {k: v.clone() for k, v in detector.backbone.state_dict().items()}
    refuse_foreign_checkpoint(detector, tmp_path / "proposer.pth")
    load_checkpoint(detector, str(tmp_path / "proposer.pth"), map_location="cpu", strict=False)
    assert all(torch.equal(v, state[k]) for k, v in detector.proposer.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in detector.backbone.state_dict().items())
    with pytest.raises(UserError, match="nothing to train"):
        detector.loss(torch.zeros(1, 3, 32, 32), [])


def test_the_tool_on_ground_truth_boxes_and_on_saved_detections(shared, repo, tmp_path):
    root = shared / "coco_mini_train"
    data = json.loads((root / "instances_train2017.json").read_text())
    data["images"] = data["images"][:4]
    kept = {i["id"] for i in data["images"]}
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in kept]
    (tmp_path / "ann.json").write_text(json.dumps(data))
    common = [
        "tools/rescore.py",
        "--ann",
        tmp_path / "ann.json",
        "--images",
        root / "images",
        "--arch",
        "SmartCLIP-tiny",
    ]

    def run(*options):
        return run_process(*common, *options)

    done = run("--out", tmp_path / "first.json", "--views", "crop", "dense")
    assert done.returncode == 0, done.stderr[-2000:]
    written = json.loads((tmp_path / "first.metrics.json").read_text())
    assert written["protocol"]["family"] == "rescoring"
    assert written["protocol"]["boxes"] == "ground-truth"
    # Perfect detections rescored by an untrained encoder keep their classes, so every box is still found.
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in data["annotations"]
        if not a["iscrowd"]
    ]
    (tmp_path / "perfect.json").write_text(json.dumps(perfect))
    done = run("--boxes", tmp_path / "perfect.json", "--keep-classes", "--out", tmp_path / "kept.json")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "kept.metrics.json").read_text())["metrics"]["bbox_mAP"] > 0.999
    done = run("--keep-classes")
    assert done.returncode == 2
    assert "its true class" in done.stderr

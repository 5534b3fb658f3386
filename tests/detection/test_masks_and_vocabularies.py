"""Mask head, RPN with norm layers, vocabularies from annotations, prompt names, and masks in metrics."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask

from smartclip_det.core.errors import UserError
from smartclip_det.engine.vocabulary_hook import VocabularyHook
from smartclip_det.models.vocabulary import build_bank
from smartclip_det.protocols.detection_metric import OpenVocabMetric
from smartclip_det.protocols.registry import evaluate
from tests.detection.test_gates import dataset_of
from tests.detection.tiny import TOWERS, build, encoder, smoke_config

MASK_HEAD = {
    "type": "FCNMaskHead",
    "num_convs": 1,
    "in_channels": 32,
    "conv_out_channels": 16,
    "num_classes": 1,
    "class_agnostic": True,
    "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True},
}
PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
    {"type": "Resize", "scale": (320, 320), "keep_ratio": True},
    {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")},
]


@pytest.fixture(scope="module")
def masked(shared):
    root = shared / "coco_mini_train"
    config = smoke_config(
        root,
        **{
            "model.roi_head.mask_head": MASK_HEAD,
            "model.data_preprocessor.pad_mask": True,
            "model.rpn_head.type": "NormedRPNHead",
            "model.rpn_head.norm_cfg": {"type": "BN"},
        },
    )
    detector = build(config)
    dataset = dataset_of(config, pipeline=PIPELINE, indices=6)
    detector.set_text_bank(build_bank(encoder(), dataset.metainfo["classes"], progress=False))
    return detector, dataset, root


def test_masks_and_normed_proposals_train(masked):
    detector, dataset, _ = masked
    detector.train()
    norms = [m for m in detector.rpn_head.rpn_conv.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    data = detector.data_preprocessor(pseudo_collate([dataset[i] for i in range(2)]), True)
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=1e-3)
    first = None
    for _ in range(12):
        torch.manual_seed(0)
        losses = detector.loss(data["inputs"], data["data_samples"])
        total = sum(v if isinstance(v, torch.Tensor) else sum(v) for k, v in losses.items() if "loss" in k)
        first = float(losses["loss_mask"]) if first is None else first
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert all(m.weight.grad is not None for m in norms)
    assert float(losses["loss_mask"]) < 0.8 * first


def test_masks_are_pasted_into_their_boxes_in_original_pixels(masked, monkeypatch):
    """Logits of +10 everywhere: each mask is its box, rounded to pixels."""
    detector, dataset, _ = masked
    detector.eval()
    monkeypatch.setattr(detector.roi_head.mask_head, "forward", lambda x: x.new_full((len(x), 1, 28, 28), 10.0))
    data = detector.data_preprocessor(pseudo_collate([dataset[i] for i in range(2)]), False)
    with torch.no_grad():
        samples = detector.predict(data["inputs"], data["data_samples"])
    for sample in samples:
        found = sample.pred_instances
        assert len(found)
        assert tuple(found.masks.shape) == (len(found), *sample.ori_shape)
        x1, y1, x2, y2 = found.bboxes.unbind(1)
        areas = (x2 - x1) * (y2 - y1)
        got = found.masks.flatten(1).sum(1)
        # Pasting interpolates half a cell of a 28 x 28 grid at each border.
        big = (x2 - x1 > 40) & (y2 - y1 > 40)
        assert big.any()
        assert ((got - areas).abs() / areas)[big].max() < 0.12
        rows, columns = found.masks[0].any(1).nonzero(), found.masks[0].any(0).nonzero()
        assert rows.min() >= y1[0] - 2
        assert columns.max() <= x2[0] + 2


def test_true_masks_reach_the_ceiling_and_the_file_gives_the_same_digits(masked, tmp_path):
    _, dataset, root = masked
    ann = root / "instances_train2017.json"
    truth = json.loads(ann.read_text())
    kept = {dataset.get_data_info(i)["img_id"] for i in range(6)}
    part = {
        **truth,
        "images": [i for i in truth["images"] if i["id"] in kept],
        "annotations": [a for a in truth["annotations"] if a["image_id"] in kept],
    }
    (tmp_path / "ann.json").write_text(json.dumps(part))
    metric = OpenVocabMetric(
        str(tmp_path / "ann.json"),
        protocol="coco",
        iou_types=["bbox", "segm"],
        out_file=str(tmp_path / "out.json"),
        metrics_file=str(tmp_path / "m.json"),
    )
    names = [c["name"] for c in part["categories"]]
    ids = [c["id"] for c in part["categories"]]
    metric.dataset_meta = {"classes": tuple(names)}
    for image in part["images"]:
        mine = [a for a in part["annotations"] if a["image_id"] == image["id"] and not a.get("iscrowd")]
        masks = [_decoded(a, image) for a in mine]
        boxes = torch.tensor(
            [[a["bbox"][0], a["bbox"][1], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]] for a in mine],
            dtype=torch.float32,
        ).reshape(-1, 4)
        found = InstanceData(
            bboxes=boxes,
            scores=torch.ones(len(mine)),
            labels=torch.tensor([ids.index(a["category_id"]) for a in mine], dtype=torch.long),
            masks=torch.from_numpy(np.stack(masks) if masks else np.zeros((0, 1, 1), dtype=bool)),
        )
        metric.process(None, [{"img_id": image["id"], "pred_instances": found}])
    lines = evaluate("coco", ann=tmp_path / "ann.json", pred=metric.partial_file, iou_type="segm")
    metrics = metric.evaluate(len(part["images"]))
    assert metrics["bbox_mAP"] > 0.999
    assert metrics["segm_mAP"] > 0.999
    again = evaluate("coco", ann=tmp_path / "ann.json", pred=tmp_path / "out.json", iou_type="segm")
    assert again.metrics["segm_mAP"] == lines.metrics["segm_mAP"] == metrics["segm_mAP"]
    assert set(json.loads((tmp_path / "m.json").read_text())["per_class"]) == {"bbox", "segm"}


def _decoded(annotation, image):
    found = annotation["segmentation"]
    if isinstance(found, list):
        found = coco_mask.merge(coco_mask.frPyObjects(found, image["height"], image["width"]))
    return coco_mask.decode(found).astype(bool)


def test_mask_mistakes_are_told(masked, tmp_path):
    with pytest.raises(UserError, match="class_agnostic=True"):
        build(smoke_config(**{"model.roi_head.mask_head": {**MASK_HEAD, "class_agnostic": False}}))
    with pytest.raises(UserError, match="Masks are written as .json"):
        OpenVocabMetric("a.json", iou_types=["segm"], out_file="x.safetensors")
    metric = OpenVocabMetric("a.json", iou_types=["bbox", "segm"])
    metric.dataset_meta = {"classes": ("cat",)}
    found = InstanceData(bboxes=torch.zeros(1, 4), scores=torch.ones(1), labels=torch.zeros(1).long())
    with pytest.raises(UserError, match="has no mask head"):
        metric.process(None, [{"img_id": 1, "pred_instances": found}])


class TestVocabularyOfTheAnnotations:
    def build(self, shared, **options):
        from mmdet.registry import DATASETS

        return DATASETS.build(
            {
                "type": "OpenVocabLVISDataset",
                "data_root": str(shared / "lvis_val100"),
                "ann_file": "lvis_val_100.json",
                "vocabulary": "annotations",
                "pipeline": [],
                **options,
            }
        )

    def test_lvis_base_is_common_and_frequent(self, shared):
        data = self.build(shared, seen="lvis_base", seen_only=True)
        categories = json.loads((shared / "lvis_val100/lvis_val_100.json").read_text())["categories"]
        ordered = sorted(categories, key=lambda c: c["id"])
        assert data.metainfo["classes"] == tuple(c["name"] for c in ordered)
        assert data.metainfo["seen"] == tuple(c["name"] for c in ordered if c["frequency"] != "r")
        rare = {k for k, c in enumerate(ordered) if c["frequency"] == "r"}
        labels = {b["bbox_label"] for i in range(len(data)) for b in data.get_data_info(i)["instances"]}
        assert labels
        assert not labels & rare

    def test_prompt_names_change_the_text_and_not_the_class(self, shared):
        with pytest.raises(UserError, match="classes in prompt_names not found"):
            self.build(shared, prompt_names={"no such class": "x"})
        data = self.build(shared, prompt_names={"aerosol_can": "spray bottle"})
        names = data.metainfo["classes"][:3]
        hook = VocabularyHook(TOWERS, cache_dir=None)
        meta = {"classes": names, "prompt_names": data.metainfo["prompt_names"]}
        bank = hook.bank_for(meta, "average_state")
        plain = hook.bank_for({"classes": names}, "average_state")
        at = names.index("aerosol_can")
        assert bank.names == names
        assert "spray bottle" in bank.texts[at]
        assert not torch.equal(bank.embeds[at], plain.embeds[at])
        assert torch.equal(bank.embeds[1:], plain.embeds[1:]) if at == 0 else True

"""Selection, heads, data sets, hooks, code paths and stock detectors."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from torchvision.ops import nms

from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.text_bank import TextBank
from smartclip_det.models.selection import select_detections
from tests.conftest import REPO
from tests.detection.tiny import TOWERS, build, smoke_config


def full_nms(boxes, scores, score_threshold, iou_threshold, limit):
    """All pairs, NMS per class, then the best; ties by box, then class."""
    rows, classes, values = [], [], []
    for c in range(scores.shape[1]):
        keep = (scores[:, c] > score_threshold).nonzero().squeeze(1)
        order = keep[scores[keep, c].argsort(descending=True, stable=True)]
        survivors = order[nms(boxes[order].double(), torch.arange(len(order), 0, -1).double(), iou_threshold)]
        rows.append(survivors)
        classes.append(torch.full_like(survivors, c))
        values.append(scores[survivors, c])
    rows, classes, values = torch.cat(rows), torch.cat(classes), torch.cat(values)
    order = sorted(range(len(rows)), key=lambda i: (-float(values[i]), int(rows[i]), int(classes[i])))[:limit]
    return rows[order], classes[order], values[order]


class TestSelection:
    def sample(self, r, c, seed, levels=None):
        g = torch.Generator().manual_seed(seed)
        xy = torch.rand(r, 2, generator=g) * 60
        boxes = torch.cat([xy, xy + 5 + torch.rand(r, 2, generator=g) * 40], dim=1)
        scores = torch.rand(r, c, generator=g) ** 3
        return boxes, scores if levels is None else (scores * levels).round() / levels

    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("levels", [None, 20])
    def test_equals_full_nms_with_and_without_ties(self, seed, levels):
        boxes, scores = self.sample(200, 30, seed, levels)
        for threshold, limit in ((0.0, 50), (0.3, 100), (0.99, 100), (0.0, 5000)):
            ours = select_detections(boxes, scores, score_threshold=threshold, iou_threshold=0.5, max_detections=limit)
            expected = full_nms(boxes, scores, threshold, 0.5, limit)
            for a, b in zip(ours, expected, strict=True):
                assert torch.equal(a, b)

    def test_candidates_are_enlarged_when_nms_removes_most(self):
        boxes = torch.tensor([[0.0, 0, 50, 50]]).repeat(3000, 1)
        boxes[2990:] = torch.arange(10).unsqueeze(1) * 100 + torch.tensor([[200.0, 0, 250, 50]])
        scores = torch.linspace(1, 0.5, 3000).unsqueeze(1)
        rows, _, _ = select_detections(boxes, scores, score_threshold=0, iou_threshold=0.5, max_detections=10)
        assert rows.tolist() == [0, *range(2990, 2999)]

    def test_empty(self):
        for shape in ((0, 5), (5, 0)):
            rows, classes, values = select_detections(
                torch.zeros(shape[0], 4), torch.zeros(shape), score_threshold=0, iou_threshold=0.5, max_detections=10
            )
            assert len(rows) == len(classes) == len(values) == 0

    def test_large_vocabularies_cost_little(self):
        boxes, scores = self.sample(1000, 1203, 0)
        start = time.perf_counter()
        select_detections(boxes, scores, score_threshold=1e-4, iou_threshold=0.5, max_detections=300)
        assert time.perf_counter() - start < 20  # full NMS takes about a minute


def head_and_bank(policy_seen=(True, True, False), **options):
    from smartclip_det.models.roi_heads import OpenVocabBBoxHead

    torch.manual_seed(0)
    head = OpenVocabBBoxHead(embed_dim=16, in_channels=8, roi_size=3, num_convs=1, num_fcs=1, fc_channels=32, **options)
    background = TextBank(("background",), torch.randn(1, 16), torch.ones(1, 16))
    bank = TextBank(
        ("cat", "dog", "bus"),
        torch.randn(3, 16),
        (torch.rand(3, 16) > 0.4).float(),
        seen=policy_seen,
        background=background,
    )
    return head, bank


class TestBoxHead:
    @pytest.mark.parametrize("background", ["zero", "text", "text_ones", "learned"])
    @pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
    def test_logits_for_every_rule(self, background, activation):
        head, bank = head_and_bank()
        policy = ScoringPolicy(background=background, activation=activation, sigmoid_bias=-1.0)
        vectors = torch.randn(5, 16)
        logits = head.logits(vectors, bank, policy)
        cosine = bank.cosine(vectors, policy) * head.temperature(policy)
        if activation == "sigmoid":
            assert torch.allclose(logits, cosine - 1)
            return
        assert torch.allclose(logits[:, :3], cosine)
        expected = {
            "zero": torch.zeros(5),
            "text": torch.nn.functional.cosine_similarity(vectors, bank.background.embeds),
            "text_ones": torch.nn.functional.cosine_similarity(vectors, bank.background.embeds),
            "learned": torch.nn.functional.cosine_similarity(vectors, head.background[None]),
        }[background]
        assert torch.allclose(logits[:, 3], expected * head.temperature(policy), atol=1e-4)

    def test_sigmoid_against_background_is_a_softmax_of_two(self):
        head, bank = head_and_bank()
        policy = ScoringPolicy(activation="sigmoid", sigmoid_reference="background")
        vectors = torch.randn(5, 16)
        scores = head.logits(vectors, bank, policy).sigmoid()
        two = head.logits(vectors, bank.select(["dog"]), policy.with_(activation="softmax")).softmax(1)
        assert torch.allclose(scores[:, 1], two[:, 0], atol=1e-5)

    @pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
    def test_unseen_classes_take_no_part_in_training(self, activation):
        head, bank = head_and_bank()
        policy = ScoringPolicy(activation=activation, background_weight=0.5)
        vectors = torch.randn(6, 16, requires_grad=True)
        deltas = torch.randn(6, 4, requires_grad=True)
        targets = (torch.tensor([0, 1, 3, 3, 3, 3]), torch.zeros(6, 4), torch.tensor([True, True] + [False] * 4))
        losses = head.loss(vectors, deltas, targets, bank, policy)
        moved = TextBank(
            bank.names,
            torch.cat([bank.embeds[:2], torch.randn(1, 16)]),
            bank.masks,
            seen=bank.seen,
            background=bank.background,
        )
        assert torch.allclose(losses["loss_cls"], head.loss(vectors, deltas, targets, moved, policy)["loss_cls"])
        if activation == "softmax":
            logits = head.logits(vectors, bank, policy)[:, [0, 1, 3]]
            nll = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 2, 2, 2]), reduction="none")
            assert losses["loss_cls"].item() == pytest.approx(
                (nll * torch.tensor([1, 1, 0.5, 0.5, 0.5, 0.5])).mean().item(), rel=1e-5
            )
        assert losses["loss_bbox"].item() == pytest.approx(deltas[:2].abs().sum().item() / 6, rel=1e-5)

    def test_a_box_of_an_unseen_class_is_an_error(self):
        head, bank = head_and_bank()
        targets = (torch.tensor([2]), torch.zeros(1, 4), torch.tensor([True]))
        with pytest.raises(UserError, match="marked unseen: bus"):
            head.loss(torch.randn(1, 16), torch.zeros(1, 4), targets, bank, ScoringPolicy())

    def test_no_positive_box_still_backpropagates(self):
        head, bank = head_and_bank()
        vectors, deltas = head(torch.randn(4, 8, 3, 3))
        targets = (torch.full((4,), 3), torch.zeros(4, 4), torch.zeros(4, dtype=torch.bool))
        losses = head.loss(vectors, deltas, targets, bank, ScoringPolicy(background="learned"))
        sum(v for k, v in losses.items() if "loss" in k).backward()
        assert all(p.grad is not None for p in head.parameters())

    def test_other_dimensions_are_refused(self):
        head, _ = head_and_bank()
        with pytest.raises(UserError, match="D = 8, this head 16"):
            head.logits(torch.randn(1, 16), TextBank(("a",), torch.randn(1, 8), torch.ones(1, 8)), ScoringPolicy())

    def test_compat_relu(self):
        head, _ = head_and_bank(compat_relu=True)
        assert (head(torch.randn(4, 8, 3, 3))[0] >= 0).all()


class TestRoIHead:
    def test_fused_scores_by_hand_and_dense_norm(self):
        from smartclip_det.models.roi_heads import OpenVocabRoIHead

        _, bank = head_and_bank()
        roi = OpenVocabRoIHead(
            {
                "type": "SingleRoIExtractor",
                "roi_layer": {"type": "RoIAlign", "output_size": 3, "sampling_ratio": 0},
                "out_channels": 8,
                "featmap_strides": [8],
            },
            {
                "type": "OpenVocabBBoxHead",
                "embed_dim": 16,
                "in_channels": 8,
                "roi_size": 3,
                "num_convs": 0,
                "num_fcs": 1,
                "fc_channels": 8,
            },
            dense_stride=8,
        )
        policy = ScoringPolicy(fusion="f_vit", background="text", dense_mask_mode="off", alpha=0.3)
        vectors, dense = torch.randn(5, 16), torch.randn(5, 16)
        p = roi.bbox_head.logits(vectors, bank, policy).softmax(1)
        q = (
            75
            * torch.cat(
                [
                    bank.cosine(dense, policy, mask_mode="off"),
                    torch.nn.functional.cosine_similarity(dense, bank.background.embeds)[:, None],
                ],
                1,
            )
        ).softmax(1)
        got = roi.scores(vectors, dense, None, bank, policy)
        assert torch.allclose(got[:, 0], p[:, 0] ** 0.7 * q[:, 0] ** 0.3, atol=1e-5)
        assert torch.allclose(got[:, 2], p[:, 2] ** 0.2 * q[:, 2] ** 0.8, atol=1e-5)
        grid = torch.randn(1, 16, 4, 4)
        rois = torch.tensor([[0.0, 8, 8, 16, 16]])
        pooled = roi.dense_vectors(grid, rois, policy.with_(dense_norm="none"))
        expected = torch.nn.functional.interpolate(grid[:, :, 1:2, 1:2], size=1)[:, :, 0, 0]
        assert torch.allclose(pooled, expected, atol=1e-5)
        unit = roi.dense_vectors(grid, rois, policy)
        assert torch.allclose(unit, torch.nn.functional.normalize(expected, dim=1), atol=1e-5)

    def test_no_proposals_give_no_detections(self, tmp_path):
        detector = build(smoke_config(tmp_path)).eval()
        _, small = head_and_bank()
        bank = TextBank(
            small.names,
            torch.randn(3, 64),
            torch.ones(3, 64),
            background=TextBank(("background",), torch.randn(1, 64), torch.ones(1, 64)),
        )
        from mmdet.structures import DetDataSample

        sample = DetDataSample(metainfo={"img_shape": (64, 64), "scale_factor": (1.0, 1.0), "img_id": 1})
        sample.proposals = InstanceData(bboxes=torch.zeros(0, 4), scores=torch.zeros(0))
        detector.set_text_bank(bank)
        out = detector.predict(torch.randn(1, 3, 64, 64), [sample])[0].pred_instances
        assert len(out.bboxes) == 0
        assert out.label_names == []

    @pytest.mark.parametrize("rescale", [False, True])
    def test_detections_are_cut_at_the_border_and_pass_nms_class_by_class(self, tmp_path, rescale):
        """Proposals are kept unchanged (the regressor is zero): of pairs with IoU above 0.5 one remains per class."""
        from mmdet.structures import DetDataSample

        options = {"model.test_cfg.rcnn": {"score_thr": 0.0, "nms_iou": 0.5, "max_per_img": 50}}
        detector = build(smoke_config(tmp_path, **options)).eval()
        torch.nn.init.zeros_(detector.roi_head.bbox_head.fc_reg.weight)
        bank = TextBank(
            ("cat", "dog"),
            torch.randn(2, 64),
            torch.ones(2, 64),
            background=TextBank(("background",), torch.randn(1, 64), torch.ones(1, 64)),
        )
        detector.set_text_bank(bank)
        sample = DetDataSample(metainfo={"img_shape": (48, 96), "scale_factor": (0.5, 0.25), "img_id": 1})
        # One beyond each border; two duplicates (IoU 0.6); two distinct (IoU 0.43).
        boxes = [
            [-9.0, -9, 20, 10],
            [70, 30, 150, 150],
            [30, 0, 50, 20],
            [35, 0, 55, 20],
            [30, 24, 50, 44],
            [38, 24, 58, 44],
        ]
        sample.proposals = InstanceData(bboxes=torch.tensor(boxes), scores=torch.ones(6))
        with torch.no_grad():
            out = detector.predict(torch.randn(1, 3, 64, 96), [sample], rescale=rescale)[0].pred_instances
        assert {n: out.label_names.count(n) for n in bank.names} == {"cat": 5, "dog": 5}
        factor = torch.tensor([2.0, 4, 2, 4] if rescale else [1.0] * 4)
        found = (out.bboxes / factor)[out.labels == 0].round(decimals=3).tolist()
        assert {tuple(b) for b in found} > {(0, 0, 20, 10), (70, 30, 96, 48), tuple(boxes[4]), tuple(boxes[5])}


class TestDataset:
    def write(self, tmp_path):
        data = {
            "images": [
                {"id": 7, "file_name": "a.jpg", "width": 100, "height": 80},
                {"id": 8, "file_name": "b.jpg", "width": 100, "height": 80},
            ],
            "categories": [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 9, "name": "bus"}],
            "annotations": [
                {"id": 1, "image_id": 7, "category_id": 5, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0},
                {"id": 2, "image_id": 7, "category_id": 9, "bbox": [40, 10, 20, 20], "area": 400, "iscrowd": 1},
                {"id": 3, "image_id": 8, "category_id": 2, "bbox": [200, 10, 20, 20], "area": 400, "iscrowd": 0},
            ],
        }
        (tmp_path / "ann.json").write_text(json.dumps(data))

    def build(self, tmp_path, **options):
        from mmdet.registry import DATASETS

        from smartclip_det import register_detection  # noqa: F401

        return DATASETS.build(
            {
                "type": "OpenVocabCocoDataset",
                "data_root": str(tmp_path),
                "ann_file": "ann.json",
                "pipeline": [],
                **options,
            }
        )

    def test_labels_follow_the_vocabulary_not_the_file(self, tmp_path):
        self.write(tmp_path)
        for names in (["bus", "dog", "cat"], ["cat", "dog", "bus"]):
            data = self.build(tmp_path, vocabulary=names, test_mode=True)
            labels = [names[i["bbox_label"]] for i in data.get_data_info(0)["instances"]]
            assert labels == ["dog", "bus"]
            assert [i["ignore_flag"] for i in data.get_data_info(0)["instances"]] == [0, 1]
            assert data.get_data_info(0)["instances"][0]["bbox"] == [10, 10, 30, 30]
            assert data.get_data_info(1)["instances"] == []

    def test_seen_only_leaves_other_boxes_out_but_keeps_the_vocabulary(self, tmp_path):
        self.write(tmp_path)
        data = self.build(
            tmp_path,
            vocabulary=["bus", "dog", "cat"],
            seen=["dog"],
            seen_only=True,
            filter_cfg={"filter_empty_gt": True},
        )
        assert len(data) == 1
        assert [i["bbox_label"] for i in data.get_data_info(0)["instances"]] == [1]
        assert data.metainfo["classes"] == ("bus", "dog", "cat")
        assert data.metainfo["seen"] == ("dog",)

    def test_a_misspelt_name_is_an_error(self, tmp_path):
        self.write(tmp_path)
        with pytest.raises(UserError, match=r"'buss' \(nearest: bus"):
            self.build(tmp_path, vocabulary=["buss", "dog"])
        with pytest.raises(UserError, match="seen contains names"):
            self.build(tmp_path, vocabulary=["bus"], seen=["dog"])
        with pytest.raises(UserError, match="vocabulary not found"):
            self.build(tmp_path, vocabulary="ov_coco_66")
        with pytest.raises(UserError, match="No annotation file"):
            self.build(tmp_path / "nowhere", vocabulary=["bus"])

    def test_ov_coco_validates_on_images_with_a_box_of_the_65(self, shared):
        from smartclip_det.core.vocabularies import OV_COCO_65

        root = str(shared / "coco_mini_train")
        options = {
            "data_root": root,
            "ann_file": "instances_train2017.json",
            "vocabulary": "ov_coco_65",
            "test_mode": True,
        }
        everything, annotated = self.build(".", **options), self.build(".", **options, annotated_only=True)
        data = json.loads((shared / "coco_mini_train/instances_train2017.json").read_text())
        ids = {c["id"] for c in data["categories"] if c["name"] in OV_COCO_65}
        expected = {a["image_id"] for a in data["annotations"] if a["category_id"] in ids}
        assert len(everything) == 80
        assert {annotated.get_data_info(i)["img_id"] for i in range(len(annotated))} == expected
        assert len(expected) == 78

    def test_lvis_images_and_names(self, shared):
        from mmdet.registry import DATASETS

        root = shared / "lvis_val100"
        categories = [c["name"] for c in json.loads((root / "lvis_val_100.json").read_text())["categories"]]
        data = DATASETS.build(
            {
                "type": "OpenVocabLVISDataset",
                "data_root": str(root),
                "ann_file": "lvis_val_100.json",
                "vocabulary": categories[::-1],
                "pipeline": [],
                "test_mode": True,
            }
        )
        assert len(data) == 100
        boxes = sum(len(data.get_data_info(i)["instances"]) for i in range(100))
        assert boxes == 977
        v1 = data.image_path({"coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg"})
        assert v1.endswith("train2017/000000391895.jpg")

    def test_gray_photographs_become_rgb(self, shared):
        from mmengine.dataset import Compose
        from mmengine.registry import init_default_scope

        init_default_scope("mmdet")
        path = shared / "grayscale_jpeg/000000431848.jpg"
        image = Compose([{"type": "LoadImageFromFile"}])({"img_path": str(path)})["img"]
        assert image.shape == (640, 378, 3)
        assert np.array_equal(image[..., 0], image[..., 2])


STOCK = [
    "mask-rcnn_smartclip-b16_fpn_1x_coco.py",
    "retinanet_smartclip-b16_fpn_1x_coco.py",
    "dino-4scale_smartclip-b16_8xb2-12e_coco.py",
]


def stock_config(name):
    from smartclip_det.engine.config import load_config

    config = load_config(REPO / "configs/stock_detectors" / name, {"towers": dict(TOWERS)})
    model = config.model
    model.backbone.out_indices = (0, 1, 2, 3)
    model.neck[0].in_channels = 64
    model.neck[1].in_channels = [64] * 4
    if model.type == "DINO":
        model.num_queries = 30
        model.encoder.num_layers = model.decoder.num_layers = 1
        model.dn_cfg.group_cfg.num_dn_queries = 10
    return config


@pytest.mark.parametrize("name", STOCK)
def test_stock_detectors_train_and_predict_by_config_only(name):
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    torch.manual_seed(0)
    detector = MODELS.build(stock_config(name).model)
    detector.init_weights()
    frozen = {k: v.clone() for k, v in detector.backbone.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=1e-4)
    batch = demo_mm_inputs(2, [[3, 128, 160], [3, 120, 96]], num_classes=80, with_mask="mask" in name)
    detector.train()
    assert not detector.backbone.image_tower.training
    data = detector.data_preprocessor(batch, True)
    losses, _ = detector.parse_losses(detector(**data, mode="loss"))
    losses.backward()
    optimizer.step()
    assert torch.isfinite(losses)
    assert all(torch.equal(v, frozen[k]) for k, v in detector.backbone.state_dict().items())
    detector.eval()
    with torch.no_grad():
        data = detector.data_preprocessor(demo_mm_inputs(1, [[3, 128, 160]], num_classes=80), False)
        out = detector.predict(data["inputs"], data["data_samples"], rescale=False)
    assert out[0].pred_instances.bboxes.shape[1] == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", [STOCK[0], "open-vocab"])
def test_mmdetections_own_entry_points_open_config_and_checkpoint(name, tmp_path, shared):
    from mmdet.apis import DetInferencer, inference_detector, init_detector
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    from smartclip_det.core.vocabularies import COCO_80

    init_default_scope("mmdet")
    if name == "open-vocab":
        config = smoke_config(shared / "coco_mini_train")
        config.model.default_vocabulary = {
            "towers": dict(TOWERS),
            "names": "ov_coco_65",
            "progress": False,
            "templates": "none",
        }
        config.test_dataloader.dataset.pipeline.pop(2)
    else:
        config = stock_config(name)
        config.test_dataloader.dataset.pipeline = [
            p for p in config.test_dataloader.dataset.pipeline if p.type != "LoadAnnotations"
        ]
    config.dump(tmp_path / "config.py")
    detector = MODELS.build(config.model)
    torch.save(
        {"meta": {"dataset_meta": {"classes": COCO_80}}, "state_dict": detector.state_dict()}, tmp_path / "w.pth"
    )
    photo = str(next((shared / "coco_mini_train/images").glob("*.jpg")))
    model = init_detector(str(tmp_path / "config.py"), str(tmp_path / "w.pth"), device="cpu")
    result = inference_detector(model, photo)
    assert result.pred_instances.bboxes.shape[1] == 4
    inferencer = DetInferencer(str(tmp_path / "config.py"), str(tmp_path / "w.pth"), device="cpu", show_progress=False)
    out = inferencer(photo, no_save_vis=True)["predictions"][0]
    assert len(out["bboxes"]) == len(out["scores"])


class TestBackbone:
    def test_trained_towers_leave_no_parameter_without_gradient(self):
        from smartclip_det.models.backbones import SmartCLIPViT

        backbone = SmartCLIPViT(TOWERS, out_indices=(0, 2), frozen=False).train()
        sum(t.sum() for t in backbone(torch.randn(1, 3, 64, 64))).backward()
        for name, p in backbone.named_parameters():
            assert (p.grad is not None) == p.requires_grad, name

    def test_frozen_towers_give_detached_taps(self):
        from smartclip_det.models.backbones import SmartCLIPViT

        backbone = SmartCLIPViT(TOWERS, out_indices=(0, 1, 2, 3))
        assert not any(t.requires_grad for t in backbone(torch.randn(1, 3, 64, 64)))
        assert backbone.features(torch.randn(1, 3, 64, 64), dense=True).dense.shape == (1, 64, 8, 8)

    def test_sources_are_checked(self, tmp_path):
        from smartclip_det.models.towers.source import load_towers

        with pytest.raises(UserError, match="Nearest: checkpoint"):
            load_towers({"checkpont": "x"})
        with pytest.raises(UserError, match="need dict"):
            load_towers({"checkpoint": None})
        with pytest.raises(UserError, match="No checkpoint at"):
            load_towers({"checkpoint": str(tmp_path / "x.pt"), "arch": "ViT-B-16"})

    def test_neck_needs_four_taps(self):
        from smartclip_det.models.necks import TapPyramid

        maps = TapPyramid(8)([torch.randn(1, 8, 5, 7)] * 4)
        assert [tuple(m.shape[-2:]) for m in maps] == [(20, 28), (10, 14), (5, 7), (3, 4)]
        with pytest.raises(UserError, match="four taps"):
            TapPyramid(8)([torch.randn(1, 8, 4, 4)] * 3)


class TestConfig:
    def test_linked_variables_reach_every_place(self):
        config = smoke_config("elsewhere")
        assert config.train_dataloader.dataset.data_root == "elsewhere/"
        assert config.test_evaluator.data_root == "elsewhere/"
        assert config.model.backbone.towers.arch == "SmartCLIP-tiny"
        assert config.custom_hooks[0].towers.arch == "SmartCLIP-tiny"

    def test_an_override_of_one_place_wins_and_other_values_stay(self):
        from smartclip_det.engine.config import load_config

        base = REPO / "configs/ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py"
        config = load_config(
            base,
            {"data_root": "here/", "val_dataloader.dataset.data_root": "there/", "model.neck.0.norm_cfg.type": "GN"},
        )
        assert config.train_dataloader.dataset.data_root == "here/"
        assert config.val_dataloader.dataset.data_root == "there/"
        assert config.model.neck[0].norm_cfg.type == "GN"
        assert config.model.neck[1].norm_cfg.type == "SyncBN"
        plain = load_config(base)
        assert plain.val_dataloader.dataset.data_root == "data/coco/"

    def test_sync_bn_is_replaced_where_it_cannot_run(self, caplog):
        from smartclip_det.engine.config import fit_norm_layers, load_config

        config = load_config(REPO / "configs/ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py")
        assert config.model.neck[0].norm_cfg.type == "SyncBN"
        assert fit_norm_layers(config, distributed=False)
        assert "SyncBN" not in config.pretty_text
        assert "Replaced SyncBN by BN" in caplog.text

    def test_errors(self, tmp_path):
        from smartclip_det.engine.config import load_config

        with pytest.raises(UserError, match="Nearest in .*open-vocab-rcnn"):
            load_config(REPO / "configs/ov_coco/open-vocab-rcnn_smartclip-b16.py")
        base = REPO / "configs/ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py"
        with pytest.raises(UserError, match="'val_ann' is a variable .* has no effect"):
            load_config(base, {"val_ann": "x.json"})
        with pytest.raises(UserError, match="cannot be applied"):
            load_config(base, {"custom_hooks.5.templates": "photo"})
        with pytest.raises(UserError, match="Nearest: data_root"):
            load_config(REPO / "configs/ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py", {"dataroot": "x"})
        (tmp_path / "broken.py").write_text("a = (")
        with pytest.raises(UserError, match="cannot be read"):
            load_config(tmp_path / "broken.py")


def test_environment_table_runs_the_operators():
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "smartclip_det.utils.env"], capture_output=True, text=True, cwd=REPO, check=False
    )
    assert done.returncode == 0
    for line in (
        "RoIAlign on cpu: ok",
        "NMS on cpu: ok",
        "MultiScaleDeformableAttention on cpu: ok",
        "operators              ",
        "mmdet                  3.3.0",
    ):
        assert line in done.stdout


def test_a_stack_without_mmcv_gets_one_readable_error(monkeypatch):
    import sys

    from smartclip_det.utils import compat

    monkeypatch.setitem(sys.modules, "mmcv", None)
    with pytest.raises(
        UserError, match=r'mmcv cannot be imported .* Run `pip install "smartclip_det\[det\]"`, or `make setup`'
    ):
        compat.check_stack()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_frozen_tower_and_the_neck_run_in_bf16_and_all_else_in_fp32(precision, monkeypatch):
    """GPUs with bf16 use it by default; here it is requested explicitly."""
    from smartclip_det.utils import devices

    detector = build(smoke_config(**{"model.backbone.precision": precision})).eval()
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    exact = build(smoke_config()).eval()
    kinds = []
    detector.neck[0].register_forward_hook(lambda _m, given, out: kinds.append(out[0].dtype))
    with torch.no_grad():
        found, expected = detector.extract_feat(pixels), exact.extract_feat(pixels)
        # Features for a third-party neck have the precision of the images.
        assert all(t.dtype == torch.float32 for t in detector.backbone(pixels))
    assert kinds == [torch.bfloat16 if precision == "bf16" else torch.float32]
    for a, b in zip(found, expected, strict=True):
        assert (a.float() - b).abs().mean() <= (0.02 if precision == "bf16" else 0) * b.abs().mean()
    card = torch.device("cuda")
    asked = []
    monkeypatch.setattr(devices, "autocast", lambda device, name: asked.append(name))
    for has in (True, False):
        monkeypatch.setattr(devices, "bf16_pays", lambda device, has=has: has)
        devices.frozen_precision(card)
        devices.frozen_precision(torch.device("cpu"))
    assert asked == ["bf16", "fp32", "fp32", "fp32"]

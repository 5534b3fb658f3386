"""End-to-end checks on real photographs: oracle, overfit, geometry, bank swap."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData

from smartclip_det.core.errors import UserError
from smartclip_det.core.vocabularies import OV_COCO_65, OV_COCO_BASE
from smartclip_det.models.vocabulary import build_bank
from smartclip_det.protocols.detection_metric import OpenVocabMetric
from tests.detection.tiny import TOWERS, build, encoder, smoke_config


def dataset_of(config, **changes):
    from mmdet.registry import DATASETS as MMDET_DATASETS

    cfg = copy.deepcopy(config.test_dataloader.dataset)
    # Annotations first, so that ground truth goes through the same geometry as the image.
    load, resize, annotate, pack = cfg.pipeline
    cfg.pipeline = [load, annotate, resize, pack]
    cfg.update(changes)
    return MMDET_DATASETS.build(cfg)


def oracle_run(detector, dataset, bank, true_bank, fused=False):
    """Predict with ground-truth boxes as proposals and the true class's text vector as region vector.

    ``true_bank`` gives the region vectors, ``bank`` is used for scoring: equal for the oracle, not for controls.
    """
    head = detector.roi_head
    metric = OpenVocabMetric(head.ann_file, protocol="ov-coco")
    metric.dataset_meta = dataset.metainfo
    detector.set_text_bank(bank)
    for i in range(len(dataset)):
        data = detector.data_preprocessor(pseudo_collate([dataset[i]]), False)
        sample = data["data_samples"][0]
        truth = sample.gt_instances
        names = [dataset.metainfo["classes"][k] for k in truth.labels.tolist()]
        sample.proposals = InstanceData(bboxes=truth.bboxes.clone().float(), scores=torch.ones(len(names)))
        vectors = torch.stack([true_bank.embeds[true_bank.index_of(n)] for n in names]) if names else torch.zeros(0, 64)
        head.bbox_head.forward = lambda regions, v=vectors: (v, torch.zeros(len(v), 4))
        head.dense_vectors = lambda dense, rois, policy, v=vectors: v
        with torch.no_grad():
            out = detector.predict(data["inputs"], data["data_samples"])
        metric.process(None, [o.to_dict() for o in out])
    return metric.compute_metrics(metric.results)


@pytest.fixture(scope="module")
def oracle(shared):
    root = shared / "coco_mini_train"
    config = smoke_config(
        root,
        **{
            "model.policy": {"mask_mode": "off", "fusion": "none", "temperature": 100.0, "background": "zero"},
            "model.test_cfg.rcnn.nms_iou": 0.95,
            "model.roi_head.bbox_head.learn_temperature": False,
        },
    )
    # Real objects of one class overlap: NMS at the recipe's 0.4 costs the oracle 1.2 points.
    detector = build(config).eval()
    detector.roi_head.ann_file = str(root / "instances_train2017.json")
    return config, detector


def distinct_bank(names):
    """One nearly orthogonal vector per class name, independent of the order of names."""
    from smartclip_det.core.similarity import text_seed
    from smartclip_det.core.text_bank import TextBank

    rows = [torch.randn(64, generator=torch.Generator().manual_seed(text_seed(n))) for n in names]
    return TextBank(tuple(names), torch.nn.functional.normalize(torch.stack(rows), dim=1), torch.ones(len(names), 64))


def test_oracle_reaches_the_ceiling_and_permuted_texts_reach_nothing(oracle):
    config, detector = oracle
    dataset = dataset_of(config)
    bank = distinct_bank(OV_COCO_65)
    metrics = oracle_run(detector, dataset, bank, bank)
    assert metrics["all_ap50"] >= 0.99
    assert metrics["base_ap50"] >= 0.99
    assert metrics["novel_ap50"] >= 0.99
    rolled = distinct_bank([*OV_COCO_65[7:], *OV_COCO_65[:7]])
    permuted = type(bank)(bank.names, rolled.embeds, rolled.masks)
    assert oracle_run(detector, dataset, permuted, bank)["all_ap50"] < 0.05


def test_oracle_does_not_see_the_order_of_the_vocabulary(oracle):
    config, detector = oracle
    bank = distinct_bank(OV_COCO_65)
    reference = oracle_run(detector, dataset_of(config), bank, bank)
    order = list(np.random.default_rng(0).permutation(OV_COCO_65))
    shuffled = dataset_of(config, vocabulary=order)
    assert shuffled.metainfo["classes"] == tuple(order)
    outcome = oracle_run(detector, shuffled, distinct_bank(order), bank)
    assert outcome == pytest.approx(reference, abs=1e-12)
    by_name = {n: i for i, n in enumerate(order)}
    records = {r["img_id"]: r for r in shuffled.load_data_list()}
    for record in dataset_of(config).load_data_list():
        expected = [by_name[OV_COCO_65[i["bbox_label"]]] for i in record["instances"]]
        assert [i["bbox_label"] for i in records[record["img_id"]]["instances"]] == expected


def test_oracle_on_the_80_class_file_by_the_published_split(oracle):
    """Only base classes get their vectors: base AP stays perfect, novel AP drops to zero."""
    config, detector = oracle
    bank = distinct_bank(OV_COCO_65)
    blank = bank.embeds.clone()
    for name in set(OV_COCO_65) - set(OV_COCO_BASE):
        blank[bank.index_of(name)] = -bank.embeds[bank.index_of(name)]
    metrics = oracle_run(detector, dataset_of(config), bank, type(bank)(bank.names, blank, bank.masks))
    assert metrics["base_ap50"] >= 0.99
    assert metrics["novel_ap50"] < 0.05


@pytest.mark.slow
def test_overfit_eight_real_photographs(shared, tmp_path):
    import json

    from mmengine.runner import Runner

    root = shared / "coco_mini_train"
    data = json.loads((root / "instances_train2017.json").read_text())
    base = {c["id"] for c in data["categories"] if c["name"] in OV_COCO_BASE}
    size = {i["id"]: i["width"] * i["height"] for i in data["images"]}
    learnable = {}
    for a in data["annotations"]:
        ok = a["category_id"] in base and not a["iscrowd"] and a["area"] > 0.02 * size[a["image_id"]]
        learnable.setdefault(a["image_id"], []).append(ok)
    images = [i["id"] for i in data["images"] if learnable.get(i["id"]) and all(learnable[i["id"]])][:8]
    assert len(images) == 8
    names = sorted(
        {
            c["name"]
            for c in data["categories"]
            for a in data["annotations"]
            if a["image_id"] in images and a["category_id"] == c["id"]
        }
    )
    data["images"] = [i for i in data["images"] if i["id"] in images]
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in images]
    (tmp_path / "eight.json").write_text(json.dumps(data))
    dataset = {"vocabulary": names, "seen": names, "ann_file": str(tmp_path / "eight.json")}
    step = {"type": "Resize", "scale": (192, 192), "keep_ratio": True}
    options = {
        "work_dir": str(tmp_path / "run"),
        **{f"train_dataloader.dataset.{k}": v for k, v in dataset.items()},
        **{f"{s}_dataloader.dataset.{k}": v for k, v in dataset.items() for s in ("val", "test")},
        "train_dataloader.dataset.pipeline.2": step,
        "train_dataloader.dataset.pipeline.3.prob": 0.0,
        "val_dataloader.dataset.pipeline.1": step,
        "test_dataloader.dataset.pipeline.1": step,
        "val_evaluator.ann_file": str(tmp_path / "eight.json"),
        "val_evaluator.protocol": "coco",
        "model.policy": {"mask_mode": "hard", "fusion": "none", "background": "learned"},
        "model.data_preprocessor.pad_size_divisor": 192,
        "model.train_cfg.rpn_proposal.nms_pre": 300,
        "model.train_cfg.rpn_proposal.max_per_img": 100,
        "model.test_cfg.rpn.nms_pre": 300,
        "model.test_cfg.rpn.max_per_img": 100,
        "model.train_cfg.rcnn.sampler.num": 64,
        "model.train_cfg.rpn.sampler.num": 64,
        "train_dataloader.batch_size": 8,
        "custom_hooks": [{"type": "VocabularyHook", "towers": dict(TOWERS), "templates": "none", "cache_dir": None}],
        "param_scheduler": [
            {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 10},
            {"type": "MultiStepLR", "by_epoch": True, "milestones": [80], "gamma": 0.1},
        ],
        "train_cfg.max_epochs": 100,
        "train_cfg.val_interval": 100,
        "optim_wrapper.optimizer.lr": 2e-3,
        "optim_wrapper.optimizer.weight_decay": 1e-4,
        "default_hooks.checkpoint.interval": -1,
        "default_hooks.logger.interval": 20,
    }
    runner = Runner.from_cfg(smoke_config(root, **options))
    torch.set_num_threads(2)
    try:
        runner.train()
    finally:
        torch.set_num_threads(1)
    ap50 = runner.message_hub.get_scalar("val/bbox_mAP_50").current()
    present = {c["name"] for c in data["categories"]} & set(names)
    assert len(present) == len(names)
    # bbox_mAP_50 is the mean over classes with ground truth.
    assert ap50 >= 0.8


class TestGeometry:
    """Boxes that the head copies from its proposals must equal the annotated boxes after any pipeline."""

    @pytest.mark.parametrize("flip", [0.0, 1.0])
    @pytest.mark.parametrize("scale", [(320, 320), (200, 333), (500, 170), (97, 211)])
    @pytest.mark.parametrize("keep_ratio", [True, False])
    def test_boxes_return_to_original_pixels(self, oracle, flip, scale, keep_ratio):
        config, detector = oracle
        load, _, annotate, pack = copy.deepcopy(list(config.test_dataloader.dataset.pipeline))
        resize = {"type": "Resize", "scale": scale, "keep_ratio": keep_ratio}
        pack["meta_keys"] = (*pack["meta_keys"], "flip")
        pipeline = [load, annotate, resize, {"type": "RandomFlip", "prob": flip}, pack]
        dataset = dataset_of(config, pipeline=pipeline)
        bank = distinct_bank(OV_COCO_65)
        detector.set_text_bank(bank)
        head = detector.roi_head
        for index in (0, 11, 37):
            data = detector.data_preprocessor(pseudo_collate([dataset[index]]), False)
            sample = data["data_samples"][0]
            assert sample.flip == bool(flip)
            truth = sample.gt_instances
            names = [OV_COCO_65[k] for k in truth.labels.tolist()]
            sample.proposals = InstanceData(bboxes=truth.bboxes.clone().float(), scores=torch.ones(len(names)))
            vectors = torch.stack([bank.embeds[bank.index_of(n)] for n in names])
            head.bbox_head.forward = lambda regions, v=vectors: (v, torch.zeros(len(v), 4))
            with torch.no_grad():
                found = detector.predict(data["inputs"], data["data_samples"])[0].pred_instances
            record = dataset.get_data_info(index)
            width, height = record["width"], record["height"]
            for instance in record["instances"]:
                x1, y1, x2, y2 = np.clip(instance["bbox"], 0, [width, height] * 2)
                expected = np.array([width - x2, y1, width - x1, y2] if flip else [x1, y1, x2, y2])
                distance = np.abs(found.bboxes.numpy() - expected).max(1)
                close = int(distance.argmin())
                assert distance[close] < 1.0, (index, expected)
                assert found.label_names[close] == OV_COCO_65[instance["bbox_label"]] or (distance < 1.0).sum() > 1

    def test_padding_to_odd_sizes_moves_no_box(self, shared):
        """A photograph gives the same detections alone and in a batch with a larger one."""
        config = smoke_config(shared / "coco_mini_train", **{"model.data_preprocessor.pad_size_divisor": 192})
        detector = build(config).eval()
        detector.set_text_bank(build_bank(encoder(), ["cat", "dog"], progress=False))
        small = torch.randint(0, 255, (3, 101, 67), dtype=torch.uint8)
        large = torch.randint(0, 255, (3, 128, 160), dtype=torch.uint8)

        def run(images):
            from mmdet.structures import DetDataSample

            samples = []
            for image in images:
                sample = DetDataSample(
                    metainfo={
                        "img_shape": image.shape[1:],
                        "ori_shape": image.shape[1:],
                        "scale_factor": (1.0, 1.0),
                        "img_id": 0,
                    }
                )
                sample.proposals = InstanceData(bboxes=torch.tensor([[10.0, 10, 60, 90]]), scores=torch.ones(1))
                samples.append(sample)
            data = detector.data_preprocessor({"inputs": list(images), "data_samples": samples}, False)
            with torch.no_grad():
                return detector.predict(data["inputs"], data["data_samples"])[0].pred_instances

        alone, together = run([small]), run([small, large])
        assert torch.allclose(alone.bboxes, together.bboxes, atol=1e-3)
        assert torch.allclose(alone.scores, together.scores, atol=1e-4)
        assert (alone.bboxes <= torch.tensor([67, 101, 67, 101])).all()


class TestBankSwap:
    def test_swapped_bank_gives_what_fresh_models_give(self, shared):
        config = smoke_config(
            shared / "coco_mini_train", **{"model.roi_head.test_cfg": None, "model.test_cfg.rcnn.score_thr": 0.0}
        )
        towers = encoder()
        banks = [build_bank(towers, names, progress=False) for names in (["cat", "dog"], ["person", "red bus", "sky"])]
        dataset = dataset_of(config)

        def run(detector, bank):
            detector.set_text_bank(bank)
            data = detector.data_preprocessor(pseudo_collate([dataset[3]]), False)
            with torch.no_grad():
                return detector.predict(data["inputs"], data["data_samples"])[0].pred_instances

        one = build(config).eval()
        state = {k: v.clone() for k, v in one.state_dict().items()}
        swapped = [run(one, banks[0]), run(one, banks[1]), run(one, banks[0])]
        for bank, result in zip([banks[0], banks[1], banks[0]], swapped, strict=True):
            fresh = build(config).eval()
            fresh.load_state_dict(state)
            expected = run(fresh, bank)
            assert torch.equal(result.bboxes, expected.bboxes)
            assert torch.equal(result.scores, expected.scores)
            assert result.label_names == expected.label_names
        assert all(torch.equal(v, state[k]) for k, v in one.state_dict().items())
        assert not any("bank" in k for k in state)

    def test_a_bank_of_other_towers_is_refused(self, shared):
        from smartclip_det.models.towers import SmartCLIP

        detector = build(smoke_config(shared / "coco_mini_train"))
        other = build_bank(SmartCLIP.from_arch("SmartCLIP-tiny", seed=9), ["cat"], progress=False)
        with pytest.raises(UserError, match="embeddings are not comparable"):
            detector.set_text_bank(other)
        with pytest.raises(UserError, match="No vocabulary is set"):
            detector._active_bank(torch.device("cpu"))

    def test_a_checkpoint_of_other_towers_is_refused(self, shared):
        one = build(smoke_config(shared / "coco_mini_train"))
        other = build(smoke_config(shared / "coco_mini_train", towers={"arch": "SmartCLIP-tiny", "seed": 9}))
        assert other.backbone.tower_hash != one.backbone.tower_hash
        with pytest.raises(UserError, match="trained with towers .* Use the same towers"):
            other.load_state_dict(one.state_dict())
        one.load_state_dict(one.state_dict())

    def test_a_checkpoint_of_another_model_is_refused(self, shared, tmp_path):
        from smartclip_det.engine.launch import refuse_foreign_checkpoint

        detector = build(smoke_config(shared / "coco_mini_train"))
        torch.save({"state_dict": {"foo": torch.ones(1)}}, tmp_path / "w.pth")
        with pytest.raises(UserError, match="tensors are missing or have another shape"):
            refuse_foreign_checkpoint(detector, tmp_path / "w.pth")
        torch.save({"state_dict": detector.state_dict()}, tmp_path / "w.pth")
        refuse_foreign_checkpoint(detector, tmp_path / "w.pth")

    def test_the_hook_sets_and_restores_the_bank_of_each_phase(self, shared):
        from types import SimpleNamespace

        from mmengine.logging import MessageHub, MMLogger

        from smartclip_det.engine import VocabularyHook

        detector = build(smoke_config(shared / "coco_mini_train"))
        phases = {
            n: SimpleNamespace(dataset=SimpleNamespace(metainfo=m))
            for n, m in (
                ("train", {"classes": ("cat", "dog"), "seen": ("cat",)}),
                ("val", {"classes": ("bus", "sky", "cat"), "templates": "none"}),
            )
        }
        runner = SimpleNamespace(
            model=detector,
            train_dataloader=phases["train"],
            val_dataloader=phases["val"],
            test_dataloader=phases["val"],
            logger=MMLogger.get_current_instance(),
            message_hub=MessageHub.get_instance("hook-test"),
        )
        hook = VocabularyHook(TOWERS, cache_dir=None)
        hook.before_train(runner)
        assert detector.text_bank.names == ("cat", "dog")
        assert detector.text_bank.seen.tolist() == [True, False]
        training = detector.text_bank
        hook.before_val_epoch(runner)
        assert detector.text_bank.names == ("bus", "sky", "cat")
        assert detector.text_bank.texts == ("bus", "sky", "cat")
        hook.after_val_epoch(runner)
        assert detector.text_bank is training
        hook.after_train(runner)
        assert detector.text_bank is None
        hook.before_test_epoch(runner)
        assert len(detector.text_bank) == 3
        hook.after_test_epoch(runner)
        assert detector.text_bank is None
        assert runner.message_hub.get_info("vocabulary")["classes"] == 3
        assert "control" not in runner.message_hub.get_info("vocabulary")
        # The control exchanges the texts of a test, and leaves the training as it is.
        control = VocabularyHook(TOWERS, cache_dir=None, control="text_shuffled")
        control.before_train(runner)
        assert torch.equal(detector.text_bank.embeds, training.embeds)
        control.before_val_epoch(runner)
        plain = hook.bank_for(phases["val"].dataset.metainfo, detector.policy.template_order)
        assert detector.text_bank.names == plain.names
        assert not any((a == b).all() for a, b in zip(detector.text_bank.embeds, plain.embeds, strict=True))
        assert runner.message_hub.get_info("vocabulary")["control"] == "text_shuffled"
        with pytest.raises(UserError, match="takes no text bank"):
            hook.before_train(SimpleNamespace(**{**vars(runner), "model": torch.nn.Linear(1, 1)}))

    def test_default_vocabulary_serves_callers_that_know_no_banks(self, shared):
        config = smoke_config(shared / "coco_mini_train")
        config.model.default_vocabulary = {"towers": dict(config.towers), "names": ["cat", "dog"], "progress": False}
        detector = build(config)
        assert detector._active_bank(torch.device("cpu")).names == ("cat", "dog")


def test_registries_are_mmdetections_own():
    from mmdet.registry import HOOKS, METRICS, MODELS

    from smartclip_det import register_detection  # noqa: F401

    for registry, name in (
        (MODELS, "SmartCLIPViT"),
        (MODELS, "OpenVocabRCNN"),
        (METRICS, "OpenVocabMetric"),
        (HOOKS, "VocabularyHook"),
    ):
        assert registry.get(name) is not None

"""Every config builds on tiny towers; real and smoke configs name the same classes; configs stay short."""

from __future__ import annotations

import pytest
from mmengine.registry import init_default_scope

from smartclip_det.engine.config import fit_norm_layers, load_config
from tests.conftest import REPO
from tests.detection.tiny import TOWERS

EVERY_CONFIG = sorted(p for p in (REPO / "configs").rglob("*.py") if "_base_" not in p.parts)
ALIGNMENT = [p for p in EVERY_CONFIG if "smartclip_align" in p.parts or "-align_" in p.stem or "-pretrain_" in p.stem]
REFERRING = [p for p in EVERY_CONFIG if p.stem.startswith("referring_")]
# Built and trained in tests/detection/test_grounding_dino.py.
GROUNDING_DINO = [p for p in EVERY_CONFIG if p.stem.startswith("mm-grounding-dino")]
CONFIGS = [p for p in EVERY_CONFIG if p not in (*ALIGNMENT, *REFERRING, *GROUNDING_DINO)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_builds_on_tiny_towers(path):
    from mmdet.registry import METRICS, MODELS
    from mmengine.optim import build_optim_wrapper

    from smartclip_det import register_detection  # noqa: F401

    # The towers of the toy world are tiny already.
    toy = "toy" in path.stem
    config = load_config(path, {} if toy else {"towers": dict(TOWERS)})
    model = config.model
    if model.type == "RescoringDetector":
        model.proposer.backbone.init_cfg = None
    elif toy:
        pass
    elif model.type == "OpenVocabOWL":
        model.backbone.out_indices = (3,)
        model.bbox_head.update(in_channels=64, embed_dim=64)
    else:
        model.backbone.out_indices = (0, 1, 2, 3)
        model.neck[0].in_channels = 64
        model.neck[1].in_channels = [64] * 4
    if not toy and "roi_head" in model and model.type == "OpenVocabRCNN":
        model.roi_head.bbox_head.embed_dim = 64
    fit_norm_layers(config, distributed=False)
    init_default_scope("mmdet")
    detector = MODELS.build(model)
    if config.get("optim_wrapper"):
        wrapper = build_optim_wrapper(detector, config.optim_wrapper)
        assert any(g["params"] for g in wrapper.optimizer.param_groups)
    assert any(p.requires_grad for p in detector.backbone.parameters()) == (model.type == "OpenVocabOWL")
    if config.test_evaluator.type == "OpenVocabMetric":
        METRICS.build(config.test_evaluator)


@pytest.mark.parametrize("path", ALIGNMENT, ids=lambda p: p.stem)
def test_alignment_config_builds_and_takes_a_step(path):
    import torch
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import HOOKS, METRICS, MODELS
    from mmengine.structures import BaseDataElement

    from smartclip_det import register_alignment  # noqa: F401

    config = load_config(path, {"towers.arch": "SmartCLIP-tiny"} if "smartclip_align" in path.parts else {})
    init_default_scope("mmengine")
    if config.model.towers.get("mask_top_k"):
        config.model.towers.mask_top_k = 24
    if "DeepSpeed" in config.optim_wrapper.type:
        pytest.importorskip("deepspeed")
    model = MODELS.build(config.model)
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    METRICS.build(config.val_evaluator)
    for hook in config.custom_hooks:
        HOOKS.build(hook)
    facts = {"drawn_captions": ["a heart", "a red heart on a dim background"]}
    if model.region_contrast is not None:
        facts |= {"region_boxes": [[4.0, 4, 40, 40], [20.0, 8, 60, 60]], "region_texts": ["a heart", "a star"]}
    sample = BaseDataElement(metainfo=facts)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    logs = model.train_step({"inputs": pixels, "data_samples": [sample, sample]}, wrapper)
    assert all(torch.isfinite(v).all() for v in logs.values())
    towers = load_config(path, {"towers.checkpoint": "clip.pt"}).model.towers
    assert towers.checkpoint == "clip.pt"


@pytest.mark.parametrize("path", REFERRING, ids=lambda p: p.stem)
def test_grounding_config_builds_and_takes_a_step(path):
    import torch
    from mmdet.registry import METRICS, MODELS
    from mmengine.optim import build_optim_wrapper
    from mmengine.structures import BaseDataElement

    from smartclip_det import register_detection  # noqa: F401

    config = load_config(path)
    sizes = [config[f"{part}_dataloader"].dataset.image_size for part in ("train", "val", "test")]
    assert sizes == [config.model.image_size] * 3
    assert config.val_evaluator.ann_file == config.val_dataloader.dataset.ann_file
    assert config.val_evaluator.get("split") == config.val_dataloader.dataset.get("split")
    assert config.train_dataloader.dataset.get("with_masks", False) == config.model.head.get("mask_branch", False)
    toy = "toy" in path.stem
    config = load_config(path, {} if toy else {"towers": dict(TOWERS)})
    config.model.update(image_size=64, out_indices=(0, 2) if toy else (0, 3))
    config.model.head.update(dim=32, heads=2, feedforward=64, layers=1)
    init_default_scope("mmdet")
    model = MODELS.build(config.model)
    METRICS.build(config.val_evaluator)
    facts = {
        "sentences": ["a red cup", "no such thing"],
        "masks": torch.zeros(2, 64, 64, dtype=torch.bool),
        "boxes": [torch.tensor([[4.0, 4, 40, 40]]), torch.zeros(0, 4)],
    }
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    batch = {"inputs": [torch.zeros(3, 64, 64, dtype=torch.uint8)], "data_samples": [BaseDataElement(metainfo=facts)]}
    logs = model.train_step(batch, wrapper)
    assert all(torch.isfinite(v).all() for v in logs.values())


def test_the_grounding_recipe_is_clip_vg():
    """Sizes and schedule of CLIP-VG (arXiv 2305.08685)."""
    config = load_config(REPO / "configs/smartclip_refexp/referring_smartclip-b16-384_refcoco.py")
    head = config.model.head
    assert (head.dim, head.layers, head.heads, head.feedforward, head.queries) == (512, 6, 8, 2048, 1)
    assert config.model.out_indices == (0, 3, 7, 11)
    assert config.optim_wrapper.optimizer.lr == 2.5e-4
    assert config.train_cfg.max_epochs == 110
    assert (config.model.loss_weights.bbox, config.model.loss_weights.giou) == (1.0, 1.0)
    data = config.train_dataloader.dataset
    assert data.get("flip", 0.0) == data.get("crop", 0.0) == 0.0


def test_the_toy_configs_override_sizes_and_not_classes():
    real = load_config(REPO / "configs/ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py")
    toy = load_config(REPO / "configs/toy/open-vocab-rcnn_smartclip-toy_toy.py")
    assert types_of(dict(toy.model), set()) <= types_of(dict(real.model), set()) | {"BN"}
    assert types_of(dict(toy.train_dataloader), set()) <= types_of(dict(real.train_dataloader), set()) | {"Resize"}
    assert toy.val_evaluator.type == real.val_evaluator.type


def types_of(node, out):
    if isinstance(node, dict):
        if isinstance(node.get("type"), str):
            out.add(node["type"])
        for value in node.values():
            types_of(value, out)
    elif isinstance(node, list | tuple):
        for value in node:
            types_of(value, out)
    return out


def test_the_smoke_config_overrides_sizes_and_not_classes():
    real = load_config(REPO / "configs/ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py")
    smoke = load_config(REPO / "configs/real_smoke/open-vocab-rcnn_smartclip-b16_real-smoke.py")
    assert types_of(dict(smoke.model), set()) <= types_of(dict(real.model), set())
    assert types_of(dict(smoke.train_dataloader), set()) <= types_of(dict(real.train_dataloader), set()) | {"Resize"}
    assert smoke.val_evaluator.type == real.val_evaluator.type


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_one_override_gives_backbone_and_texts_the_same_checkpoint(path):
    config = load_config(path, {"towers.checkpoint": "clip.pt"})
    assert config.model.backbone.towers.checkpoint == "clip.pt"
    for hook in config.get("custom_hooks", []):
        if hook.type == "VocabularyHook":
            assert hook.towers == config.model.backbone.towers


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_named_architectures_exist_and_fit_the_parts(path):
    import torch

    from smartclip_det.models.towers import SmartCLIP, architecture

    config = load_config(path)
    sizes = architecture(config.model.backbone.towers.arch)
    head = config.model.get("bbox_head") or config.model.get("roi_head", {}).get("bbox_head", {})
    assert head.get("embed_dim", sizes.embed_dim) == sizes.embed_dim
    neck = config.model.get("neck")
    if neck is not None:
        with torch.device("meta"):
            channels = SmartCLIP(sizes).image_tower.tap_channels
        taps = [channels[i] for i in config.model.backbone.out_indices]
        first = neck[0] if isinstance(neck, list) else neck
        assert (first.in_channels if isinstance(first.in_channels, list) else [first.in_channels] * len(taps)) == taps


@pytest.mark.parametrize("path", EVERY_CONFIG, ids=lambda p: p.stem)
def test_configs_are_short_overrides(path):
    assert len(path.read_text().splitlines()) <= 50


def test_the_published_f_vit_recipe_on_lvis_and_large_towers():
    """Every number of F-ViT's released OV-COCO config (CLIPSelf, arXiv 2310.01403)."""
    name = "configs/ov_lvis/open-vocab-mask-rcnn_smartclip-{}_8xb8-48e_ov-lvis.py"
    for tower, size, beta, stride in (("b16", 1024, 0.6, 16), ("l14", 896, 0.4, 14)):
        config = load_config(REPO / name.format(tower))
        policy = config.model.policy
        assert (policy.dense_temperature, policy.beta, policy.background_weight) == (50, beta, 0.9)
        assert config.model.test_cfg.rcnn.score_thr == 1e-4
        assert (config.model.test_cfg.rcnn.nms_iou, config.model.test_cfg.rcnn.max_per_img) == (0.5, 300)
        assert config.train_cfg.max_epochs == 48
        assert config.param_scheduler[1].milestones == [32, 44]
        assert config.train_dataloader.dataset.seen_only
        assert config.val_dataloader.dataset.pipeline[1].scale == (size, size)
        assert config.train_dataloader.dataset.pipeline[2].scale == (size, size)
        assert config.model.data_preprocessor.pad_size_divisor == size
        assert config.model.roi_head.dense_stride == stride
        assert config.model.roi_head.mask_head.class_agnostic
        assert config.val_evaluator.iou_types == ["bbox", "segm"]
    large = load_config(REPO / "configs/ov_coco/open-vocab-rcnn_smartclip-l14_8xb8-3e_ov-coco.py")
    assert large.model.backbone.out_indices == (6, 10, 14, 23)
    assert large.model.roi_head.bbox_head.embed_dim == 768
    assert large.model.policy.dense_temperature == 75
    assert large.model.data_preprocessor.pad_size_divisor == 896


def test_the_published_f_vit_recipe():
    """Every number of F-ViT's released OV-LVIS config (CLIPSelf, arXiv 2310.01403)."""
    config = load_config(REPO / "configs/ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py")
    assert config.model.policy.dense_temperature == 75
    assert config.model.policy.background_weight == 0.6
    assert config.model.policy.fusion == "f_vit"
    assert config.model.backbone.out_indices == (3, 5, 7, 11)
    assert config.model.test_cfg.rcnn == {"score_thr": 0.01, "nms_iou": 0.4, "max_per_img": 100}
    assert config.optim_wrapper.optimizer.lr == 1e-4
    assert config.optim_wrapper.optimizer.weight_decay == 0.1
    assert config.train_cfg.max_epochs == 3
    assert config.train_dataloader.batch_size == 8
    assert config.auto_scale_lr.base_batch_size == 64
    assert config.custom_hooks[0].templates == "vild_63"

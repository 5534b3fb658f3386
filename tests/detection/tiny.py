"""The real configs, reduced for tests: same classes, tiny tower, narrow heads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from smartclip_det.engine.config import fit_norm_layers, load_config
from smartclip_det.models.towers import SmartCLIP
from tests.conftest import REPO

TOWERS = {"arch": "SmartCLIP-tiny", "seed": 0}
SMOKE = REPO / "configs/real_smoke/open-vocab-rcnn_smartclip-b16_real-smoke.py"


def smoke_config(data_root: Path | str = "absent/", **options: Any) -> Config:
    """The real-smoke config on the tiny tower (patch 8); a wider patch grid turns strides 2 to 16 into 4 to 32."""
    tiny = {
        "data_root": f"{data_root}/",
        "towers": dict(TOWERS),
        "custom_hooks": [{"type": "VocabularyHook", "towers": dict(TOWERS), "templates": "photo", "cache_dir": None}],
        "model.backbone.out_indices": (0, 1, 2, 3),
        "model.neck": [
            {"type": "TapPyramid", "in_channels": 64, "norm_cfg": {"type": "BN"}},
            {"type": "FPN", "in_channels": [64] * 4, "out_channels": 32, "start_level": 1, "num_outs": 4},
        ],
        "model.rpn_head.in_channels": 32,
        "model.rpn_head.feat_channels": 32,
        "model.rpn_head.num_convs": 1,
        "model.rpn_head.anchor_generator.strides": [4, 8, 16, 32],
        "model.rpn_head.anchor_generator.scales": [4],
        "model.roi_head.bbox_roi_extractor.out_channels": 32,
        "model.roi_head.bbox_roi_extractor.featmap_strides": [4, 8, 16],
        "model.roi_head.bbox_head.embed_dim": 64,
        "model.roi_head.bbox_head.in_channels": 32,
        "model.roi_head.bbox_head.fc_channels": 128,
        "model.roi_head.bbox_head.num_convs": 0,
        "model.roi_head.dense_stride": 8,
        "train_dataloader.num_workers": 0,
        "train_dataloader.persistent_workers": False,
        "val_dataloader.num_workers": 0,
        "val_dataloader.persistent_workers": False,
        "test_dataloader.num_workers": 0,
        "test_dataloader.persistent_workers": False,
        **options,
    }
    config = load_config(SMOKE, tiny)
    fit_norm_layers(config, distributed=False)
    return config


def build(config: Config) -> Any:
    """Build the detector of a config with a fixed seed."""
    from mmdet.registry import MODELS

    from smartclip_det import register_detection  # noqa: F401

    init_default_scope("mmdet")
    torch.manual_seed(0)
    detector = MODELS.build(copy.deepcopy(config.model))
    detector.init_weights()
    return detector


def encoder() -> SmartCLIP:
    """The towers of :data:`TOWERS`."""
    return SmartCLIP.from_arch(TOWERS["arch"], seed=TOWERS["seed"])

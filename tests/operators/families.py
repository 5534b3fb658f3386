"""MMDetection's own configs, reduced for tests: one of each folder in its wheel, and a batch for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmdet
import numpy as np
import torch
from mmdet.models import backbones
from mmdet.models.backbones import detectors_resnet, detectors_resnext
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, TrackDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import InstanceData, PixelData

CONFIGS = Path(mmdet.__file__).parent / ".mim/configs"
#: Used instead of the first file of a folder, where that is larger or covers less.
CHOICE = {
    "atss": "atss_r18_fpn_8xb8-amp-lsj-200e_coco.py",
    "bytetrack": "yolox_x_8xb4-amp-80e_crowdhuman-mot17halftrain_test-mot17halfval.py",
    "cascade_rcnn": "cascade-rcnn_r50_fpn_1x_coco.py",
    "dcn": "faster-rcnn_r50_fpn_dpool_1x_coco.py",
    "dcnv2": "faster-rcnn_r50_fpn_mdpool_1x_coco.py",
    "gcnet": "mask-rcnn_r50-syncbn-gcb-r16-c3-c5_fpn_1x_coco.py",
    "glip": "glip_atss_swin-t_a_fpn_dyhead_16xb2_ms-2x_funtune_coco.py",
    "hrnet": "faster-rcnn_hrnetv2p-w18-1x_coco.py",
    "instaboost": "mask-rcnn_r50_fpn_instaboost-4x_coco.py",
    "legacy_1.x": "faster-rcnn_r50_fpn_1x_coco_v1.py",
    "mm_grounding_dino": "grounding_dino_swin-t_pretrain_obj365.py",
    "nas_fpn": "retinanet_r50_nasfpn_crop640-50e_coco.py",
    "regnet": "retinanet_regnetx-800MF_fpn_1x_coco.py",
    "res2net": "faster-rcnn_res2net-101_fpn_2x_coco.py",
    "resnest": "faster-rcnn_s50_fpn_syncbn-backbone+head_ms-range-1x_coco.py",
    "resnet_strikes_back": "faster-rcnn_r50-rsb-pre_fpn_1x_coco.py",
    "rtmdet": "rtmdet-ins_tiny_8xb32-300e_coco.py",
    "sabl": "sabl-faster-rcnn_r50_fpn_1x_coco.py",
    "seesaw_loss": "mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1.py",
    "ssd": "ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py",
    "strongsort": "yolox_x_8xb4-80e_crowdhuman-mot17halftrain_test-mot17halfval.py",
    "yolox": "yolox_nano_8xb8-300e_coco.py",
}
#: Image sides of networks for which the default is too small.
SIDES = {"cornernet": 128, "centripetalnet": 128, "ssd": 320}
#: Smaller values of settings that do not change other shapes. Batch statistics keep untrained features in range.
SMALL = {
    "fc_out_channels": 32,
    "deform_fc_channels": 16,
    "stacked_convs": 1,
    "num_queries": 12,
    "num_proposals": 12,
    "nms_pre": 40,
    "max_per_img": 20,
    "num_cp": 0,
    "with_cp": False,
    "norm_eval": False,
    "frozen_stages": -1,
}
#: Class names for detectors that read them.
WORDS = ("a", "b", "c")


def family_names() -> list[str]:
    """Names of all config folders."""
    return sorted(p.name for p in CONFIGS.iterdir() if p.is_dir())


def config_of(family: str) -> Path:
    files = sorted((CONFIGS / family).glob("*.py"))
    return CONFIGS / family / CHOICE[family] if family in CHOICE else files[0]


def has_model(family: str) -> bool:
    """Whether the config defines a model; some folders contain only data and schedules."""
    return "model" in Config.fromfile(config_of(family), import_custom_modules=False)


def shorten_backbones(monkeypatch: Any) -> None:
    """One block per stage; channels, and so the layers built on them, are unchanged."""
    for owner in (
        backbones.ResNet,
        backbones.ResNeXt,
        backbones.Res2Net,
        backbones.ResNeSt,
        detectors_resnet.DetectoRS_ResNet,
        detectors_resnext.DetectoRS_ResNeXt,
    ):
        arches = {depth: (block, (1, 1, 1, 1)) for depth, (block, _) in owner.arch_settings.items()}
        monkeypatch.setattr(owner, "arch_settings", arches)
    darknet = {53: ((1, 1, 1, 1, 1), backbones.Darknet.arch_settings[53][1])}
    monkeypatch.setattr(backbones.Darknet, "arch_settings", darknet)


def _shrink_kind(kind: str, out: dict[str, Any], bert: str) -> None:
    """Change settings that one type of module needs changed together."""
    if kind.startswith("SwinTransformer"):
        out.update(depths=[1, 1, 1, 1])
    elif kind.startswith("PyramidVision"):
        out.update(num_layers=[1, 1, 1, 1])
    elif kind == "HourglassNet":
        count = len(out["stage_channels"])
        out.update(stage_blocks=[1] * count, stage_channels=[32] * count, feat_channel=32)
    elif kind in ("CornerHead", "CentripetalHead", "FeatureRelayHead"):
        out["in_channels"] = 32
    elif kind == "EfficientNet":
        out["frozen_stages"] = 0
    elif kind == "HRNet":
        for stage in out["extra"].values():
            stage.update(num_modules=1, num_blocks=tuple(1 for _ in stage["num_blocks"]))
    elif kind == "YOLOX":
        out["backbone"].update(widen_factor=0.125, deepen_factor=0.33)
        out["neck"].update(in_channels=[32, 64, 128], out_channels=32, num_csp_blocks=1)
        out["bbox_head"].update(in_channels=32, feat_channels=32)
    elif kind == "SparseRoIHead":
        out.update(num_stages=2, stage_loss_weights=[1, 1], bbox_head=out["bbox_head"][:2])
        if out.get("mask_head"):
            out["mask_head"] = out["mask_head"][:2]
    elif kind == "BertModel":
        out["name"] = bert


def shrink(node: Any, bert: str, key: str = "") -> Any:
    """Reduce layers, queries and samples of a model, and remove pretrained weights.

    ``bert`` is the folder that replaces the name of a language model.
    """
    if isinstance(node, (list, tuple)):
        return type(node)(shrink(item, bert) for item in node)
    if not isinstance(node, dict):
        return node
    out = {name: shrink(value, bert, name) for name, value in node.items()}
    out.update({name: None for name in ("pretrained", "batch_augments", "teacher_ckpt") if name in out})
    if "checkpoint" in str(out.get("init_cfg")):
        out["init_cfg"] = None
    out.update({name: value for name, value in SMALL.items() if name in out})
    kind = str(out.get("type", ""))
    _shrink_kind(kind, out, bert)
    if kind.endswith("Sampler") and "num" in out:
        out["num"] = 8
    if key in ("encoder", "decoder", "transformer_decoder") and isinstance(out.get("num_layers"), int):
        out["num_layers"] = min(out["num_layers"], 2)
    if isinstance(out.get("num_classes"), int):
        out["num_classes"] = min(out["num_classes"], 400)
    if out.get("eps") == 0:
        out["eps"] = 1e-5  # torch rejects 0 on the CPU
    if "lang_model_name" in out:
        out["lang_model_name"] = bert
    if isinstance(out.get("teacher_config"), str):
        out["teacher_config"] = str(CONFIGS.parent / out["teacher_config"])
    return out


def model_config(family: str, bert: str) -> ConfigDict:
    """Shrunk settings of the model in a family's config."""
    return ConfigDict(shrink(Config.fromfile(config_of(family)).model.to_dict(), bert))


def find_all(node: Any, name: str) -> list[Any]:
    if isinstance(node, dict):
        return [v for k, v in node.items() if k == name] + [x for v in node.values() for x in find_all(v, name)]
    if isinstance(node, (list, tuple)):
        return [x for v in node for x in find_all(v, name)]
    return []


def sample(size: int, classes: int, seed: int) -> DetDataSample:
    """Three boxes with labels, masks and a semantic map, in an image of ``size`` pixels."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, size / 2, (3, 2))
    boxes = np.concatenate([start, start + rng.uniform(size / 4, size / 2, (3, 2))], axis=1).astype(np.float32)
    masks = np.zeros((3, size, size), dtype=np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = 1
    meta = {"img_id": seed, "img_shape": (size, size), "ori_shape": (size, size), "scale_factor": (1.0, 1.0)}
    meta |= {"homography_matrix": np.eye(3, dtype=np.float32)}
    meta |= {"batch_input_shape": (size, size), "pad_shape": (size, size), "border": [0, size, 0, size], "flip": False}
    out = DetDataSample(metainfo={**meta, "text": " . ".join(WORDS), "custom_entities": True})
    out.gt_instances = InstanceData(
        bboxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(rng.integers(0, classes, 3)),
        masks=BitmapMasks(masks, size, size),
        instances_ids=torch.arange(3),
    )
    out.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    out.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(rng.integers(0, classes, (1, size, size))))
    out.proposals = InstanceData(bboxes=torch.from_numpy(boxes), scores=torch.ones(3))
    return out


def batch(model: Any, side: int, classes: int) -> dict[str, Any]:
    """Output of a model's own preprocessor for two images, clips of two frames, or three branches."""

    def images() -> list[torch.Tensor]:
        return [torch.randint(0, 255, (3, side, side), dtype=torch.uint8) for _ in range(2)]

    def samples() -> list[DetDataSample]:
        return [sample(side, classes, seed) for seed in range(2)]

    kind = type(model.data_preprocessor).__name__
    data: dict[str, Any] = {"inputs": images(), "data_samples": samples()}
    if kind == "TrackDataPreprocessor" and not model.data_preprocessor.use_det_processor:
        clip = TrackDataSample(metainfo={"key_frames_inds": [0], "ref_frames_inds": [1]})
        clip.video_data_samples = [sample(side, classes, seed=0) for _ in range(2)]
        data = {"inputs": [torch.stack(images())], "data_samples": [clip]}
    if kind == "MultiBranchDataPreprocessor":
        branches = ("sup", "unsup_teacher", "unsup_student")
        data = {"inputs": {b: images() for b in branches}, "data_samples": {b: samples() for b in branches}}
    out: dict[str, Any] = model.data_preprocessor(data, True)
    return out


def train_step(family: str, bert: str) -> tuple[float, float]:
    """Build a family's model and run its loss backward; returns the loss and the summed gradient norms."""
    config = model_config(family, bert)
    torch.manual_seed(0)
    MessageHub.get_current_instance().update_info("epoch", 0)  # read by TOOD
    model = revert_sync_batchnorm(MODELS.build(config))  # as MMEngine's runner does for a single process
    model.init_weights()  # some parameters are uninitialised memory before
    model.train()
    classes = [c for c in find_all(config, "num_classes") if isinstance(c, int)]
    data = batch(model, SIDES.get(family, 64), min([*classes, len(WORDS)]))
    loss, _ = model.parse_losses(model(**data, mode="loss"))
    loss.backward()
    return float(loss), sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None)

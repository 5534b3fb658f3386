# Boxes of MMDetection's Faster R-CNN classified by a SmartCLIP tower, without training. Test it with the proposer's own
# checkpoint. model.proposer can be any MMDetection detector.
_base_ = [
    "mmdet::_base_/models/faster-rcnn_r50_fpn.py",
    "../_base_/datasets/ov_coco.py",
    "../_base_/default_runtime.py",
]
towers = dict(checkpoint=None, arch="SmartCLIP-B-16", seed=0)
model = dict(
    _delete_=True,
    type="RescoringDetector",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[122.7709383, 116.7460125, 104.09373615],
        std=[68.5005327, 66.6321579, 70.32316305],
        bgr_to_rgb=True,
        pad_size_divisor=640,
    ),
    proposer={{_base_.model}},
    backbone=dict(type="SmartCLIPViT", towers=towers, out_indices=(), frozen=True),
    policy=dict(mask_mode="hard", background="zero", dense_temperature=100.0),
    options=dict(objectness_power=0.5, score_threshold=0.001, nms_iou=0.5, max_detections=100),
)
train_dataloader = train_cfg = optim_wrapper = param_scheduler = None
custom_hooks = [dict(type="VocabularyHook", towers=towers, templates="vild_63")]
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

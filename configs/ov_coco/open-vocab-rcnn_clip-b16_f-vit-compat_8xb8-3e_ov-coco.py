# F-ViT as in its released code, for encoders without masks: ImageNet statistics, ReLU on region vectors.
_base_ = "./open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py"
towers = dict(checkpoint=None, arch="ViT-B-16", seed=0)
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    policy=dict(mask_mode="off"),
    backbone=dict(towers=towers),
    roi_head=dict(bbox_head=dict(compat_relu=True)),
)
custom_hooks = [dict(type="VocabularyHook", towers=towers, templates="vild_63")]

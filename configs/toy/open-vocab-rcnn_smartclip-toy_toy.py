# The OV-COCO recipe (frozen tower, F-ViT) for the toy world: same classes, other sizes and schedule. The small tower
# has taps at strides 2, 4 and 8, so there is no neck that builds a pyramid.
# towers.checkpoint: output of smartclip-align_toy.py.
_base_ = [
    "../_base_/models/open_vocab_rcnn_b16.py",
    "../_base_/datasets/toy_detection.py",
    "../_base_/schedules/f_vit_3e.py",
    "../_base_/default_runtime.py",
]

towers = dict(checkpoint=None, arch="SmartCLIP-toy", seed=0)
norm_cfg = dict(type="BN")
strides = [2, 4, 8, 16]
model = dict(
    data_preprocessor=dict(pad_size_divisor=64),
    # F-ViT's exponents times objectness, as in CORA: without it novel boxes rank below background. Cosines of a real
    # CLIP are scaled by 100, these by 16. The norm of a cell of this tower's dense map acts as its weight, so cells are
    # pooled without normalisation.
    policy=dict(fusion="cora", alpha=0.1, beta=0.8, dense_temperature=16.0, dense_norm="none", text_norm="masked"),
    backbone=dict(towers=towers, out_indices=(0, 1, 2)),
    neck=dict(_delete_=True, type="FPN", in_channels=[16, 48, 80], out_channels=64, num_outs=4, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=64, feat_channels=64, num_convs=1, anchor_generator=dict(scales=[6], strides=strides)),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, featmap_strides=strides, finest_scale=14),
        bbox_head=dict(embed_dim=256, in_channels=64, num_convs=0, fc_channels=256, norm_cfg=norm_cfg),
        dense_stride=8,
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=100), rcnn=dict(sampler=dict(num=32)), rpn=dict(sampler=dict(num=64))
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=100)),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=50),
    # Ends with the training, whatever its length.
    dict(type="CosineAnnealingLR", convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=1, val_begin=1, val_interval=1)
custom_hooks = [dict(type="VocabularyHook", towers=towers, templates=["{article} {}"])]

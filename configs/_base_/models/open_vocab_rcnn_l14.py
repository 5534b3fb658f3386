# The ViT-L/14 version: wider taps, patches of 14 pixels.
_base_ = "./open_vocab_rcnn_b16.py"

towers = dict(checkpoint=None, arch="SmartCLIP-L-14", seed=0)
norm_cfg = dict(type="SyncBN")
width = 1024
strides = [3.5, 7, 14, 28]

model = dict(
    backbone=dict(towers=towers, out_indices=(6, 10, 14, 23)),
    neck=[
        dict(type="TapPyramid", in_channels=width, norm_cfg=norm_cfg),
        dict(type="FPN", in_channels=[width] * 4, out_channels=256, num_outs=5, norm_cfg=norm_cfg),
    ],
    rpn_head=dict(anchor_generator=dict(strides=[*strides, 56])),
    roi_head=dict(
        bbox_roi_extractor=dict(featmap_strides=strides),
        bbox_head=dict(embed_dim=768),
        dense_stride=14,
    ),
)
custom_hooks = [dict(type="VocabularyHook", towers=towers, templates="vild_63")]

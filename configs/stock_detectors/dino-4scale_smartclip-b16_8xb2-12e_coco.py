# MMDetection's DINO on a frozen SmartCLIP image tower.
_base_ = ["mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py", "../_base_/smartclip_runtime.py"]
towers = dict(checkpoint=None, arch="SmartCLIP-B-16", seed=0)
model = dict(
    data_preprocessor=dict(mean=[122.7709383, 116.7460125, 104.09373615], std=[68.5005327, 66.6321579, 70.32316305]),
    backbone=dict(_delete_=True, type="SmartCLIPViT", towers=towers, out_indices=(3, 5, 7, 11)),
    neck=[
        dict(type="TapPyramid", in_channels=768),
        dict(
            type="ChannelMapper",
            in_channels=[768] * 4,
            kernel_size=1,
            out_channels=256,
            act_cfg=None,
            norm_cfg=dict(type="GN", num_groups=32),
            num_outs=4,
        ),
    ],
)

# MMDetection's RetinaNet on a frozen SmartCLIP image tower.
_base_ = [
    "mmdet::_base_/models/retinanet_r50_fpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "../_base_/default_runtime.py",
]
towers = dict(checkpoint=None, arch="SmartCLIP-B-16", seed=0)
model = dict(
    data_preprocessor=dict(mean=[122.7709383, 116.7460125, 104.09373615], std=[68.5005327, 66.6321579, 70.32316305]),
    backbone=dict(_delete_=True, type="SmartCLIPViT", towers=towers, out_indices=(3, 5, 7, 11)),
    neck=[
        dict(type="TapPyramid", in_channels=768),
        dict(
            type="FPN", in_channels=[768] * 4, out_channels=256, start_level=1, add_extra_convs="on_input", num_outs=5
        ),
    ],
)

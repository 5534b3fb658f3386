# Not in the paper. Dense regions are distilled from crops encoded by the initial tower (CLIPSelf, arXiv 2310.01403).
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

model = dict(distillation=dict(weight=10.0, images=64, teacher="initial"))
# Region accuracy is measured before training and in each validation.
custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type="RegionProbeHook",
        data_root="data/coco",
        ann_file="annotations/instances_val2017.json",
        images="val2017",
        dense_size=640,
    ),
]

# Learned pooling weights of cells: the one-stage recipe with a ViT whose dense map is also trained on captions.
# Baseline with uniform weights: towers.saliency=False.
_base_ = "./smartclip-align_toy.py"

towers = dict(arch="SmartCLIP-toy-ViT", saliency=True)
model = dict(towers=towers, dense_weight=1.0)
custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type="RegionProbeHook",
        data_root={{_base_.data_root}},
        ann_file="annotations/instances_val.json",
        images="images/val",
        split_file="annotations/split.json",
        templates=["{article} {}"],
        max_images=100,
    ),
]

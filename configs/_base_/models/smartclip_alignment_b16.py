# The published loss on ViT-B/16: 10 x (sidm + dism) + 2 x sparsity, constant scale 100, hard masks that see padding.
towers = dict(checkpoint=None, arch="SmartCLIP-B-16", stretch=True, mask_layers=1, mask_pad="include", seed=0)
model = dict(
    type="SmartCLIPAlignment",
    towers=towers,
    loss=dict(mask_mode="hard", modular=True, scale=100.0, alignment_weight=10.0, sparsity_weight=2.0),
    # One card holds 256 images; more of a batch are encoded part by part, with all negatives.
    micro_batch=256,
)

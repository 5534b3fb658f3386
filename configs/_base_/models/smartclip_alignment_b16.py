# The published loss with ViT-B/16: 10 x (sidm + dism) + 2 x sparsity, scale 100, hard masks that attend to padding.
towers = dict(checkpoint=None, arch="SmartCLIP-B-16", stretch=True, mask_layers=1, mask_pad="include", seed=0)
model = dict(
    type="SmartCLIPAlignment",
    towers=towers,
    loss=dict(mask_mode="hard", modular=True, scale=100.0, alignment_weight=10.0, sparsity_weight=2.0),
    # Images per forward pass; larger batches are encoded in chunks, and the loss uses all negatives.
    micro_batch=256,
)

# Every mask keeps 256 of 512 dimensions, so there is no sparsity loss.
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

towers = dict(
    checkpoint=None, arch="SmartCLIP-B-16", stretch=True, mask_layers=1, mask_pad="include", mask_top_k=256, seed=0
)
model = dict(towers=towers, loss=dict(sparsity_weight=0.0))

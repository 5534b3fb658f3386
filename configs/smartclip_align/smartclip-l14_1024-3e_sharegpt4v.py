# The ViT-L/14 version: 8 GPUs x 128 images in the release.
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

towers = dict(checkpoint=None, arch="SmartCLIP-L-14", stretch=True, mask_layers=1, mask_pad="include", seed=0)
model = dict(towers=towers, micro_batch=128, checkpointing=True)

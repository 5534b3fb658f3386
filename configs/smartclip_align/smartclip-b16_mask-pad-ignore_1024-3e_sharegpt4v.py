# Masks that ignore padding, the default for new trainings; texts are encoded in 4 chunks of similar length.
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

towers = dict(checkpoint=None, arch="SmartCLIP-B-16", stretch=True, mask_layers=1, mask_pad="ignore", seed=0)
model = dict(towers=towers, text_chunks=4)

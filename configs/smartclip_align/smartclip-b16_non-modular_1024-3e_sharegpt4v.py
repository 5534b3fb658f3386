# The paper's ablation: each image is masked by the mask of its own caption only, which leaks who belongs to whom.
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

model = dict(loss=dict(modular=False))

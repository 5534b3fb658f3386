# The paper's ablation: each image is masked only by its own caption's mask, which leaks the pairing.
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

model = dict(loss=dict(modular=False))

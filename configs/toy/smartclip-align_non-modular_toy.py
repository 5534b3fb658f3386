# The paper's ablation: each image is masked only by its own caption's mask, which leaks the pairing.
_base_ = "./smartclip-align_toy.py"

model = dict(loss=dict(modular=False))

# In training, masks are sampled from the hard concrete distribution (arXiv 1712.01312).
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

model = dict(loss=dict(mask_mode="hard_concrete"))

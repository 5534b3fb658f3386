# Towers stay as they are but for updates of rank 16 (arXiv 2106.09685), at a rate that such updates take.
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

model = dict(low_rank=dict(rank=16))
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=0.0))

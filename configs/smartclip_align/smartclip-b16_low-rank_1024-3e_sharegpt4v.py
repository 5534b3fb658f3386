# LoRA of rank 16 on frozen towers (arXiv 2106.09685), with a learning rate for LoRA.
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

model = dict(low_rank=dict(rank=16))
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=0.0))

# Beyond the paper: dense regions stay near what the initial tower saw in crops (as in CLIPSelf, arXiv 2310.01403).
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

model = dict(distillation=dict(weight=10.0, images=64, teacher="initial"))

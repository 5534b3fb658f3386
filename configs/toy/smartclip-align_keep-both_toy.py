# Both box-preserving losses.
_base_ = "./smartclip-align_keep-regions_toy.py"

model = dict(distillation=dict(weight=10.0, teacher="initial"))

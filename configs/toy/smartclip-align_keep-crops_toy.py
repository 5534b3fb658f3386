# Keeping boxes: dense regions stay near what the towers of before saw in crops (CLIPSelf's self-distillation).
_base_ = "./smartclip-align_two-stage_toy.py"

model = dict(distillation=dict(weight=10.0, teacher="initial"))

# Box-preserving loss: dense regions are distilled from crops encoded by the initial towers (CLIPSelf).
_base_ = "./smartclip-align_two-stage_toy.py"

model = dict(distillation=dict(weight=10.0, teacher="initial"))

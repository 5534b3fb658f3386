# Plain CLIP from the same towers, on the same captions and for as many steps: the baseline of SmartCLIP.
_base_ = "./smartclip-align_two-stage_toy.py"

towers = dict(_delete_=True, checkpoint=None, arch="CLIP-toy", seed=0)
model = dict(towers=towers, loss=dict(mask_mode="off", alignment_weight=0.5))
val_evaluator = dict(scoring="off")
test_evaluator = val_evaluator
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))

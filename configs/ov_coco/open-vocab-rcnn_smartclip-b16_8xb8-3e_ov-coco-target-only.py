# The older, easier setting: only the 17 novel names are given. Not comparable with joint numbers.
_base_ = "./open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py"
val_dataloader = dict(dataset=dict(vocabulary="ov_coco_novel", seen=[]))
test_dataloader = val_dataloader
val_evaluator = dict(setting="target-only")
test_evaluator = val_evaluator

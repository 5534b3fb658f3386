# The F-ViT recipe for OV-LVIS with SmartCLIP towers, 896 px. Set towers.checkpoint.
_base_ = [
    "../_base_/models/open_vocab_mask_rcnn_l14.py",
    "../_base_/datasets/ov_lvis_896.py",
    "../_base_/schedules/f_vit_48e.py",
    "../_base_/default_runtime.py",
]
# Square padding in training and testing: a transformer's features depend on how much padding it attends to.
model = dict(data_preprocessor=dict(pad_size_divisor=896))

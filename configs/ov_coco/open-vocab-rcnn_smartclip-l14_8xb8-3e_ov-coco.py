# The F-ViT recipe with SmartCLIP ViT-L/14 towers, 896 px. Set towers.checkpoint.
_base_ = [
    "../_base_/models/open_vocab_rcnn_l14.py",
    "../_base_/datasets/ov_coco_896.py",
    "../_base_/schedules/f_vit_3e.py",
    "../_base_/default_runtime.py",
]
# Square padding in training and testing: a transformer's features depend on how much padding it attends to.
model = dict(data_preprocessor=dict(pad_size_divisor=896))

# COCO val2017, 80 names.
_base_ = "./open-vocab-rcnn_smartclip-b16_transfer.py"
data_root = "data/coco/"
model = dict(policy=dict(alpha=0.2, beta=0.2))
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017/"),
        vocabulary="coco_80",
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(data_root=data_root, ann_file="annotations/instances_val2017.json")
test_evaluator = val_evaluator

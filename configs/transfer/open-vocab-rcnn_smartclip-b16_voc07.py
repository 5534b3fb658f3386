# VOC2007 test in COCO format (tools/data/to_coco.py), with AP50 and AP75 as defined by COCO.
_base_ = "./open-vocab-rcnn_smartclip-b16_transfer.py"
data_root = "data/voc07/"
model = dict(policy=dict(alpha=0.3, beta=0.3))
val_dataloader = dict(
    dataset=dict(
        data_root=data_root, ann_file="voc07_test.json", data_prefix=dict(img="JPEGImages/"), vocabulary="annotations"
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(data_root=data_root, ann_file="voc07_test.json")
test_evaluator = val_evaluator

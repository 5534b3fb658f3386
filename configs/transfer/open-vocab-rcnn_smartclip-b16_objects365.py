# Objects365 val. The annotation file determines the version, v1 (F-ViT and ViLD) or v2 (Detic): report which.
_base_ = "./open-vocab-rcnn_smartclip-b16_transfer.py"
data_root = "data/objects365/"
model = dict(policy=dict(alpha=0.3, beta=0.3))
val_dataloader = dict(
    dataset=dict(
        data_root=data_root, ann_file="objects365_val.json", data_prefix=dict(img="val/"), vocabulary="annotations"
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(data_root=data_root, ann_file="objects365_val.json")
test_evaluator = val_evaluator

# The OV-LVIS version: federated loss over 100 of the 866 base classes per batch, 300 boxes per image, box AP.
_base_ = "./open-vocab-owl_smartclip-b16_8xb4-12e_ov-coco.py"
data_root = "data/lvis/"
model = dict(bbox_head=dict(federated=100))
lvis = dict(
    type="OpenVocabLVISDataset",
    data_root=data_root,
    data_prefix=dict(img=""),
    vocabulary="annotations",
    seen="lvis_base",
)
train_dataloader = dict(dataset=dict(ann_file="lvis_v1_train.json", **lvis))
val_dataloader = dict(dataset=dict(ann_file="lvis_v1_val.json", annotated_only=False, **lvis))
test_dataloader = val_dataloader
val_evaluator = dict(data_root=data_root, ann_file="lvis_v1_val.json", protocol="ov-lvis", images="all")
test_evaluator = val_evaluator

# OV-LVIS (ViLD, arXiv 2104.13921): train on boxes and masks of 866 common and frequent classes, test on 1,203.
# data_root contains LVIS v1 and the folders train2017 and val2017 of COCO.
_base_ = "./ov_coco.py"

data_root = "data/lvis/"
image_size = (1024, 1024)
train_ann = "lvis_v1_train.json"
val_ann = "lvis_v1_val.json"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomResize", scale=image_size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type="RandomCrop",
        crop_type="absolute_range",
        crop_size=image_size,
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
lvis = dict(type="OpenVocabLVISDataset", data_root=data_root, data_prefix=dict(img=""), vocabulary="annotations")
train_dataloader = dict(
    dataset=dict(ann_file=train_ann, seen="lvis_base", pipeline=train_pipeline, **lvis),
)
val_dataloader = dict(
    dataset=dict(ann_file=val_ann, seen="lvis_base", annotated_only=False, pipeline=test_pipeline, **lvis),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    data_root=data_root, ann_file=val_ann, protocol="ov-lvis", images="all", iou_types=["bbox", "segm"]
)
test_evaluator = val_evaluator

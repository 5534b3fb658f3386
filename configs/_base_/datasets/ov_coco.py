# OV-COCO (OVR-CNN, arXiv 2011.10678): 48 base classes for training, 65 for testing. data_root contains COCO 2017.
data_root = "data/coco/"
image_size = (640, 640)
train_ann = "annotations/instances_train2017.json"
val_ann = "annotations/instances_val2017.json"
train_images = "train2017/"
val_images = "val2017/"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
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
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    batch_sampler=dict(type="AspectRatioBatchSampler"),
    dataset=dict(
        type="OpenVocabCocoDataset",
        data_root=data_root,
        ann_file=train_ann,
        data_prefix=dict(img=train_images),
        vocabulary="ov_coco_65",
        seen="ov_coco_base",
        seen_only=True,
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="OpenVocabCocoDataset",
        data_root=data_root,
        ann_file=val_ann,
        data_prefix=dict(img=val_images),
        vocabulary="ov_coco_65",
        seen="ov_coco_base",
        annotated_only=True,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="OpenVocabMetric", data_root=data_root, ann_file=val_ann, protocol="ov-coco", images="annotated"
)
test_evaluator = val_evaluator

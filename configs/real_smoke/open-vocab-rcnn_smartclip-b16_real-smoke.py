# The OV-COCO recipe reduced to a few dozen real photographs: same classes, smaller sizes and shorter schedule.
# data_root contains instances_train2017.json and images/.
_base_ = "../ov_coco/open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py"

data_root = "data/coco_mini_train/"
train_ann = val_ann = "instances_train2017.json"
train_images = val_images = "images/"
image_size = (320, 320)
train_cfg = dict(max_epochs=2, val_interval=2)
param_scheduler = [dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=10)]
default_hooks = dict(logger=dict(interval=5))

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataset = dict(
    data_root=data_root, ann_file=train_ann, data_prefix=dict(img=train_images), pipeline=train_pipeline
)
val_dataset = dict(data_root=data_root, ann_file=val_ann, data_prefix=dict(img=val_images), pipeline=test_pipeline)
train_dataloader = dict(batch_size=4, num_workers=2, dataset=train_dataset)
val_dataloader = dict(num_workers=1, dataset=val_dataset)
test_dataloader = val_dataloader
val_evaluator = dict(data_root=data_root, ann_file=val_ann)
test_evaluator = val_evaluator
# One prompt per class: 63 templates of 248 tokens are slow on a CPU.
towers = dict(checkpoint=None, arch="SmartCLIP-B-16", seed=0)
custom_hooks = [dict(type="VocabularyHook", towers=towers, templates="photo")]
model = dict(
    data_preprocessor=dict(pad_size_divisor=320),
    roi_head=dict(bbox_head=dict(num_convs=1)),
)

# Toy world boxes (tools/data/make_toy.py): base shapes for training, all shapes for testing; sizes of the toy towers.
_base_ = "./ov_coco.py"

data_root = "data/toy/"
image_size = (64, 64)
base_shapes = [
    *("circle", "square", "triangle", "pentagon", "star", "heart"),
    *("cross", "ring", "diamond", "trapezoid", "arch", "hourglass"),
]
novel_shapes = ["hexagon", "arrow", "crescent", "bolt", "drop", "semicircle"]

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=image_size, keep_ratio=True, interpolation="bicubic"),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=image_size, keep_ratio=True, interpolation="bicubic"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
val_set = dict(
    data_root=data_root,
    ann_file="annotations/instances_val.json",
    data_prefix=dict(img="images/val/"),
    vocabulary=base_shapes + novel_shapes,
    seen=base_shapes,
    annotated_only=False,
    pipeline=test_pipeline,
)
train_set = dict(
    data_root=data_root,
    ann_file="annotations/instances_train.json",
    data_prefix=dict(img="images/train/"),
    vocabulary=base_shapes + novel_shapes,
    seen=base_shapes,
    indices=10000,  # half of the images are enough to train heads; alignment uses all of them
    pipeline=train_pipeline,
)
train_dataloader = dict(batch_size=16, num_workers=2, dataset=train_set)
val_dataloader = dict(batch_size=8, num_workers=1, dataset=val_set)
test_dataloader = val_dataloader
val_evaluator = dict(
    data_root=data_root, ann_file="annotations/instances_val.json", split_file="annotations/split.json", images="all"
)
test_evaluator = val_evaluator

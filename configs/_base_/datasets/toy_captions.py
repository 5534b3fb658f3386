# Toy world captions (tools/data/make_toy.py).
data_root = "data/toy/"
image_size = 64

train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="caption_batch"),
    dataset=dict(
        type="CaptionDataset",
        data_root=data_root,
        ann_file="annotations/share_captions_train.json",
        image_size=image_size,
        fit="pad",
        captions="short",
        captions_per_image=2,
        flip=0.5,
        keep_images=True,
    ),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="CaptionDataset",
        data_root=data_root,
        ann_file="annotations/share_captions_val.json",
        image_size=image_size,
        fit="pad",
        presence=dict(shape="{category}", colour_shape="{colour} {category}"),
        presence_file="annotations/instances_val.json",
        truth="annotations/scenes_val.json",
        phrases=dict(held_out=("world.json", "held_out")),
        test_mode=True,
        keep_images=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="AlignmentMetric", scorings=["hard", "off", "random", "shuffled"], binding="colour_shape")
test_evaluator = val_evaluator

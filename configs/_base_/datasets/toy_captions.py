# Toy world captions (tools/data/make_toy.py).
data_root = "data/toy/"
images = dict(size=64, fit="pad", keep=True)
# Content of a partial caption: any subset of the objects, each with these probabilities of being described.
speech = dict(any_subset=1.0, colour=0.6, size=0.3, texture=0.3)

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
        images=dict(**images, flip=0.5),
        texts=dict(policy="short", per_image=2),
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
        images=images,
        scenes=dict(file="annotations/scenes_val.json", start=speech),
        tests=dict(
            presence=dict(shape="{category}", colour_shape="{colour} {category}"),
            presence_file="annotations/instances_val.json",
            truth="annotations/scenes_val.json",
            phrases=dict(held_out=("world.json", "held_out")),
        ),
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="AlignmentMetric", scorings=["hard", "off", "random", "shuffled"], binding="colour_shape")
test_evaluator = val_evaluator

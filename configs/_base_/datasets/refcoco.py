# RefCOCO (UNC): refs(unc).p and instances.json in the same folder, images of COCO train2014.
data_root = "data/"
annotations = dict(ann_file="refer/refcoco/refs(unc).p")
dataset = dict(type="ReferringDataset", data_root=data_root, **annotations, images="coco/train2014", image_size=384)

train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=False,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        **dataset,
        split="train",
        # About 8 x 8 sentences per process, sampled again in every epoch.
        sentences_per_image=8,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=4,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        **dataset,
        split="val",
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="ReferringMetric",
    data_root=data_root,
    **annotations,
    split="val",
    protocols=["refcoco"],
)
test_evaluator = val_evaluator

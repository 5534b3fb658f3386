# ShareGPT4V captions (share-captioner, 1,246,901 records): the first 1,000 are for validation, the rest for training.
data_root = "data/sharegpt4v/"
ann_file = "share-captioner_coco_lcs_sam_1246k_1107.json"

train_dataloader = dict(
    batch_size=256,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="EpochStreamSampler"),
    batch_sampler=dict(type="StreamBatches"),
    collate_fn=dict(type="caption_batch"),
    dataset=dict(
        type="CaptionDataset",
        data_root=data_root,
        ann_file=ann_file,
        texts=dict(policy="prefix", context_length=248),
        skip=1000,
    ),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=4,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="CaptionDataset", data_root=data_root, ann_file=ann_file, indices=1000, test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="AlignmentMetric", scoring="off")
test_evaluator = val_evaluator

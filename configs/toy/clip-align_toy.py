# CLIP from nothing in one stage: what smartclip-align_toy.py is compared with, equal in all but masks. 2,000 steps of
# 128 pictures with two captions each. Captions are drawn from the scenes: at first one or two objects with few
# attributes, later any part of the objects with more.
_base_ = ["../_base_/datasets/toy_captions.py", "../_base_/alignment_runtime.py"]

towers = dict(checkpoint=None, arch="CLIP-toy", seed=0)
max_steps = 2000
batch_size = 128

model = dict(
    type="SmartCLIPAlignment",
    towers=towers,
    # Both cross-entropies with weight 1; the scale is learned, from 1 / 0.07.
    loss=dict(mask_mode="off", scale="learned", alignment_weight=1.0),
)
train_dataloader = dict(
    batch_size=batch_size,
    drop_last=False,
    sampler=dict(_delete_=True, type="EpochStreamSampler"),
    batch_sampler=dict(type="StreamBatches"),
    dataset=dict(
        flip=0.0,
        scenes=dict(
            file="annotations/scenes_train.json",
            start=dict(any_subset=0.0, colour=0.3, size=0.1, texture=0.1),
            end=dict(any_subset=1.0, colour=0.6, size=0.3, texture=0.3),
            ramp=int(0.6 * max_steps * batch_size),
        ),
    ),
)
val_evaluator = dict(scoring="off")
test_evaluator = val_evaluator
optim_wrapper = dict(
    constructor="NamedGroupsConstructor",
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(groups=dict(scale=dict(prefixes=["towers.logit_scale"], weight_decay=0.0))),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = dict(type="WarmupCosineLR", by_epoch=False, warmup=int(0.08 * max_steps))
train_cfg = dict(type="StreamTrainLoop", max_steps=max_steps, val_interval=1000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=500, save_last=True), logger=dict(interval=50, log_metric_by_epoch=False)
)
log_processor = dict(by_epoch=False)
custom_hooks = [
    dict(type="StepSeedHook"),
    dict(type="BrokenImagesHook"),
    dict(type="TextLimitHook"),
    dict(type="TowerCheckpointHook"),
    dict(type="PromptBankHook", templates=["{article} {}"]),
]

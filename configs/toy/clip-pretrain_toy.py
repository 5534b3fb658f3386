# CLIP trained from scratch on short captions: initial towers of both two-stage alignments, as SmartCLIP starts from
# CLIP.
_base_ = ["../_base_/datasets/toy_captions.py", "../_base_/alignment_runtime.py"]

towers = dict(checkpoint=None, arch="CLIP-toy", seed=0)

model = dict(
    type="SmartCLIPAlignment",
    towers=towers,
    loss=dict(mask_mode="off", scale="learned", alignment_weight=0.5),
)
val_evaluator = dict(scoring="off")
test_evaluator = val_evaluator
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys=dict(logit_scale=dict(decay_mult=0.0))),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.04, by_epoch=False, begin=0, end=80),
    # Ends with the training, whatever its length.
    dict(type="CosineAnnealingLR", convert_to_iter_based=True),
]
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=8, val_interval=4)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
custom_hooks = [
    dict(type="CaptionEpochHook"),
    dict(type="TowerCheckpointHook"),
    dict(type="PromptBankHook", templates=["{article} {}"]),
]

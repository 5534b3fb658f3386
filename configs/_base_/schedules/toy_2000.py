# Single-stage training from scratch: 2,000 steps of 128 images, AdamW, lr 2e-3, 8 % warm-up, cosine to zero, fp32.
_base_ = "../alignment_runtime.py"

max_steps = 2000
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="NamedGroupsConstructor",
    # Fused: on a CPU most of the time of the default kernel goes to the large table of token embeddings.
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05, fused=True),
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

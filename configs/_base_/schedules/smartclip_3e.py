# SmartCLIP's released schedule: AdamW, lr 1e-6, weight decay 1e-2 and 200 warm-up steps for the towers; lr 1e-3 without
# decay or warm-up for the mask network; cosine to zero over 3 epochs; global batch 1,024 on any number of GPUs.
_base_ = "../alignment_runtime.py"

global_batch_size = 1024
optim_wrapper = dict(
    type="BFloat16OptimWrapper",
    constructor="NamedGroupsConstructor",
    optimizer=dict(type="AdamW", lr=1e-6, weight_decay=1e-2),
    paramwise_cfg=dict(
        groups=dict(mask_network=dict(prefixes=["towers.mask_network."], lr=1e-3, weight_decay=0.0, warmup=0))
    ),
)
param_scheduler = dict(type="WarmupCosineLR", by_epoch=False, warmup=200)
train_cfg = dict(type="StreamTrainLoop", max_epochs=3)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=200, save_last=True), logger=dict(interval=20, log_metric_by_epoch=False)
)
log_processor = dict(by_epoch=False)
custom_hooks = [
    dict(type="StepSeedHook"),
    dict(type="BrokenImagesHook"),
    dict(type="TextLimitHook"),
    dict(type="LoaderAdviceHook"),
    dict(type="TowerCheckpointHook"),
]

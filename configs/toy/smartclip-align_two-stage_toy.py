# The published order, with masks added to a finished CLIP: SmartCLIP's alignment loss on prefixes of long captions and
# on short ones, from towers of clip-pretrain_toy.py (towers.checkpoint), with a new mask network.
_base_ = "./clip-pretrain_toy.py"

towers = dict(checkpoint=None, arch="SmartCLIP-toy", seed=0, mask_layers=1)

model = dict(
    towers=towers,
    loss=dict(mask_mode="hard", modular=True, scale="learned", alignment_weight=10.0, sparsity_weight=10.0),
)
train_dataloader = dict(dataset=dict(texts=dict(policy=dict(_delete_=True, prefix=0.5, short=0.5))))
val_evaluator = dict(scoring="hard")
test_evaluator = val_evaluator
optim_wrapper = dict(clip_grad=dict(max_norm=10.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.04, by_epoch=False, begin=0, end=80),
    # Ends with the training, whatever its length.
    dict(type="CosineAnnealingLR", convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=2, val_interval=1)
custom_hooks = [
    dict(type="CaptionEpochHook"),
    dict(type="TowerCheckpointHook"),
    dict(type="PromptBankHook", templates=["{article} {}"]),
    # Region accuracy before training and in each validation: does this stage degrade it?
    dict(
        type="RegionProbeHook",
        data_root={{_base_.data_root}},
        ann_file="annotations/instances_val.json",
        images="images/val",
        split_file="annotations/split.json",
        templates=["{article} {}"],
        dense_size=128,
        max_images=100,
    ),
]

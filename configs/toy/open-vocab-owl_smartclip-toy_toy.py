# The one-stage recipe for the toy world. towers.checkpoint: output of smartclip-align_toy.py.
_base_ = [
    "../_base_/models/open_vocab_owl_b16.py",
    "../_base_/datasets/toy_detection.py",
    "../_base_/schedules/f_vit_3e.py",
    "../_base_/default_runtime.py",
]
towers = dict(checkpoint=None, arch="SmartCLIP-toy", seed=0)
model = dict(
    data_preprocessor=dict(pad_size_divisor=64),
    backbone=dict(towers=towers, out_indices=(2,), checkpointing=False),
    bbox_head=dict(in_channels=80, embed_dim=256, merge_class_token=False),
    test_cfg=dict(max_per_img=100),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=1e-4), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1)))
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=50),
    # Ends with the training, whatever its length.
    dict(type="CosineAnnealingLR", convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=8, val_interval=8)
custom_hooks = [dict(type="VocabularyHook", towers=towers, templates=["{article} {}"])]

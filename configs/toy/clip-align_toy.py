# CLIP trained from scratch in one stage: the baseline of smartclip-align_toy.py, identical except for masks. Captions
# are generated from the scenes, two per image: first one or two objects with few attributes, later any subset.
_base_ = ["../_base_/datasets/toy_captions.py", "../_base_/schedules/toy_2000.py"]

towers = dict(checkpoint=None, arch="CLIP-toy", seed=0)
model = dict(
    type="SmartCLIPAlignment",
    towers=towers,
    # Both cross-entropies have weight 1; the scale is learned, from 1 / 0.07.
    loss=dict(mask_mode="off", scale="learned", alignment_weight=1.0),
)
train_dataloader = dict(
    drop_last=False,
    sampler=dict(_delete_=True, type="EpochStreamSampler"),
    batch_sampler=dict(type="StreamBatches"),
    dataset=dict(
        images=dict(flip=0.0),
        scenes=dict(
            file="annotations/scenes_train.json",
            start=dict(any_subset=0.0, colour=0.3, size=0.1, texture=0.1),
            end={{_base_.speech}},
            ramp=153_600,  # images: 60 % of 2,000 steps of 128
        ),
    ),
)
val_evaluator = dict(scoring="off")
test_evaluator = val_evaluator

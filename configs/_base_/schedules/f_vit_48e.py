# F-ViT on OV-LVIS: as on OV-COCO, with 48 epochs and decays after 32 and 44.
_base_ = "./f_vit_3e.py"
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=48, milestones=[32, 44], gamma=0.1),
]
train_cfg = dict(max_epochs=48, val_interval=12)

# 448 px: a patch is 3.6 % of the side.
_base_ = "./referring_smartclip-b16-384_refcoco.py"

model = dict(image_size=448)
train_dataloader = dict(dataset=dict(image_size=448))
val_dataloader = dict(dataset=dict(image_size=448))
test_dataloader = val_dataloader

# ViT-L/14.
_base_ = "./referring_smartclip-b16-384_refcoco.py"

towers = dict(arch="SmartCLIP-L-14")
model = dict(towers=towers, image_size=336, out_indices=(0, 7, 15, 23), head=dict(dim=768))
train_dataloader = dict(dataset=dict(image_size=336))
val_dataloader = dict(dataset=dict(image_size=336))
test_dataloader = val_dataloader

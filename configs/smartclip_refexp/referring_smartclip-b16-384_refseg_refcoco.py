# Boxes and referring segmentation: refs files with instances.json have masks.
_base_ = "./referring_smartclip-b16-384_refcoco.py"

model = dict(head=dict(mask_branch=True))
train_dataloader = dict(dataset=dict(with_masks=True))
val_evaluator = dict(protocols=["refcoco", "refseg"])
test_evaluator = val_evaluator

# Tested with the 80 COCO names on all 5,000 images, as Detic and BARON do; scored over the same 48 and 17 classes. Not
# comparable with the 65-name protocol. Training is the same: checkpoints of the 65-name config can be tested here.
_base_ = "./open-vocab-rcnn_smartclip-b16_8xb8-3e_ov-coco.py"
names = dict(vocabulary="coco_80")
train_dataloader = dict(dataset=names)
val_dataloader = dict(dataset=dict(annotated_only=False, **names))
test_dataloader = val_dataloader
val_evaluator = dict(images="all")
test_evaluator = val_evaluator

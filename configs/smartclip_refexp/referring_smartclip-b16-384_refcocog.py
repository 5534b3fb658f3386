# RefCOCOg (UMD split, whose training images are in no other split). Sentences are long.
_base_ = "./referring_smartclip-b16-384_refcoco.py"

annotations = dict(ann_file="refer/refcocog/refs(umd).p")
train_dataloader = dict(dataset=annotations)
val_dataloader = dict(dataset=dict(**annotations, split="val"))
test_dataloader = val_dataloader
val_evaluator = dict(**annotations, split="val")
test_evaluator = val_evaluator

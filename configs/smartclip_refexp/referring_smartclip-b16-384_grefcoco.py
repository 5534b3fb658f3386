# gRefCOCO: no, one or many targets. Ten queries, set matching (SimVG's weights 1 / 5 / 2). Convert the data first
# (sentences without a target are kept): tools/data/convert_grounding.py "grefs(unc).json" grefcoco.jsonl
_base_ = "./referring_smartclip-b16-384_refcoco.py"

annotations = dict(ann_file="refer/grefcoco/grefcoco.jsonl")
model = dict(head=dict(queries=10), loss_weights=dict(_delete_=True, exists=1.0, bbox=5.0, giou=2.0))
train_dataloader = dict(dataset=annotations)
val_dataloader = dict(dataset=annotations)
test_dataloader = val_dataloader
# score_threshold is that of the released evaluator; calibrate it on val: tools/analysis/calibrate_grounding.py
val_evaluator = dict(**annotations, protocols=["grefcoco"])
test_evaluator = val_evaluator

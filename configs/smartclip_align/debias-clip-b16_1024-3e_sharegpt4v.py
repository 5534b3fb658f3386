# DeBias-CLIP's captions (arXiv 2602.22419): the whole one, and a subset of what follows the
# summary, moved right by padding. Chance and draw of the padding are ours: its code was not available.
_base_ = "./clip-b16_1024-3e_sharegpt4v.py"

model = dict(loss=dict(alignment_weight=1.0))
train_dataloader = dict(dataset=dict(texts=dict(policy=["full", "drop-first"], left_pad=0.5)))

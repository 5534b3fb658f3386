# DeBias-CLIP's captions (arXiv 2602.22419): the full caption, and a subset of the sentences after the summary, shifted
# right by padding. Its code was not available: probability and distribution of the padding are our choice.
_base_ = "./clip-b16_1024-3e_sharegpt4v.py"

model = dict(loss=dict(alignment_weight=1.0))
train_dataloader = dict(dataset=dict(texts=dict(policy=["full", "drop-first"], left_pad=0.5)))

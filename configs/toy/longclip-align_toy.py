# Long-CLIP from the same towers: full captions, and short ones matched with the principal components of image vectors.
_base_ = "./clip-align_two-stage_toy.py"

model = dict(component_matching=32)
train_dataloader = dict(dataset=dict(texts=dict(policy="full+short")))

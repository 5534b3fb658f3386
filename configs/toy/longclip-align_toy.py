# Long-CLIP from the same towers: the whole caption, and a short one matched with the main components of the image.
_base_ = "./clip-align_two-stage_toy.py"

model = dict(component_matching=32)
train_dataloader = dict(dataset=dict(texts=dict(policy="full+short")))

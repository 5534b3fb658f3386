# Long-CLIP (arXiv 2403.15378): full captions, and short ones matched with 32 principal components of the image vectors.
# The sum of two symmetric cross-entropies equals their mean with weight 2; the release does not clamp the scale.
_base_ = "./clip-b16_1024-3e_sharegpt4v.py"

global_batch_size = 2048
model = dict(component_matching=32, initial_scale=100.0, loss=dict(alignment_weight=1.0, label_smoothing=0.1))
train_dataloader = dict(dataset=dict(texts=dict(policy="full+short")))
train_cfg = dict(max_epochs=6)

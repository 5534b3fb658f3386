# SmartCLIP trained from scratch in one stage, with masks from the first step. Text vectors are masked as well, in
# training and scoring. To initialise masks open, set towers.mask_bias=2.0. To delay sparsity, add
# dict(type="SparsityRampHook", end=1000) to custom_hooks.
_base_ = "./clip-align_toy.py"

towers = dict(checkpoint=None, arch="SmartCLIP-toy", seed=0)
model = dict(
    towers=towers,
    # The sparsity weight is relative to the sum of both cross-entropies.
    loss=dict(mask_mode="hard", text_norm="masked", sparsity_weight=0.25),
)
# A parameter group of its own, so that its learning rate can differ.
optim_wrapper = dict(
    paramwise_cfg=dict(groups=dict(mask_network=dict(prefixes=["towers.mask_network."], lr=2e-3, weight_decay=0.05)))
)
val_evaluator = dict(scoring="hard")
test_evaluator = val_evaluator

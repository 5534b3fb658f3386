# SmartCLIP from nothing in one stage, with masks from the first step. The text is masked, too, in training and scoring.
# Masks that start open: towers.mask_bias=2.0. Sparsity that comes later: add dict(type="SparsityRampHook", end=1000) to
# custom_hooks.
_base_ = "./clip-align_toy.py"

towers = dict(checkpoint=None, arch="SmartCLIP-toy", seed=0)
model = dict(
    towers=towers,
    # Sparsity is relative to the sum of both cross-entropies.
    loss=dict(mask_mode="hard", text_norm="masked", sparsity_weight=0.25),
)
# Their own group, so that their rate can be another.
optim_wrapper = dict(
    paramwise_cfg=dict(groups=dict(mask_network=dict(prefixes=["towers.mask_network."], lr=2e-3, weight_decay=0.05)))
)
val_evaluator = dict(scoring="hard")
test_evaluator = val_evaluator

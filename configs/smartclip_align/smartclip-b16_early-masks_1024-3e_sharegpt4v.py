# Combines the settings that help on the toy world when masks are added to finished towers: masks initialised open,
# delayed sparsity, a larger learning rate for the mask network, masked text vectors. Not measured on real data.
_base_ = "./smartclip-b16_sparsity-ramp_1024-3e_sharegpt4v.py"

towers = dict(mask_bias=2.0)
model = dict(towers=towers, loss=dict(text_norm="masked"))
optim_wrapper = dict(paramwise_cfg=dict(groups=dict(mask_network=dict(lr=3e-3))))

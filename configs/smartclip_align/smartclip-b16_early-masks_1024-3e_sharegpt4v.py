# What the toy world suggests where masks join towers that are finished, all at once: masks that start open, sparsity
# that comes later, a larger rate for the mask network, the text masked as well. Not measured on real data.
_base_ = "./smartclip-b16_sparsity-ramp_1024-3e_sharegpt4v.py"

towers = dict(mask_bias=2.0)
model = dict(towers=towers, loss=dict(text_norm="masked"))
optim_wrapper = dict(paramwise_cfg=dict(groups=dict(mask_network=dict(lr=3e-3))))

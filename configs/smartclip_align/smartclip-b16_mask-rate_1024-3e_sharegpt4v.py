# Three times the released learning rate for the mask network.
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

optim_wrapper = dict(paramwise_cfg=dict(groups=dict(mask_network=dict(lr=3e-3))))

# Masks start open: 2 is added to the logits of a mask network that is new (0.88 of the way to 1).
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

towers = dict(mask_bias=2.0)
model = dict(towers=towers)

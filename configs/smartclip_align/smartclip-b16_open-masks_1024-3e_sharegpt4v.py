# Masks initialised open: 2 is added to the logits of a new mask network (sigmoid 0.88).
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

towers = dict(mask_bias=2.0)
model = dict(towers=towers)

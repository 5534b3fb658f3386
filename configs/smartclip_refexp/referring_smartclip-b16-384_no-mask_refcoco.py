# Control: the same head and parameters with masks of ones.
_base_ = "./referring_smartclip-b16-384_refcoco.py"

model = dict(mask_mode="off")

# The control: the same head and parameters, masks of ones.
_base_ = "./referring_smartclip-b16-384_refcoco.py"

model = dict(mask_mode="off")

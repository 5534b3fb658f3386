# Soft masks: probabilities without thresholding.
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

model = dict(loss=dict(mask_mode="soft"))

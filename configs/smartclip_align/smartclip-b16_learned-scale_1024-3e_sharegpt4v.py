# Learned scale, initialised from the checkpoint, clamped at 100.
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

model = dict(loss=dict(scale="learned"))

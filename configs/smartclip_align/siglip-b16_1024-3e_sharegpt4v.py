# Sigmoid loss (arXiv 2303.15343) with masks: pairs are independent; scale from 10 and bias from -10, both learned.
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

model = dict(initial_scale=10.0, loss=dict(form="sigmoid", scale="learned"))

# Text vectors are masked as well (as in MoVA): cos(v * m, t * m).
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

model = dict(loss=dict(text_norm="masked"))

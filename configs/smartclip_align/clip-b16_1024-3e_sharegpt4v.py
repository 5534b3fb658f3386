# CLIP fine-tuned on the same captions: no masks, symmetric cross-entropy with weight 1, learned scale.
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

towers = dict(_delete_=True, checkpoint=None, arch="LongCLIP-B-16", stretch=True, seed=0)
model = dict(towers=towers, loss=dict(mask_mode="off", scale="learned", alignment_weight=0.5))
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True))

# Both box-preserving losses with learned pooling weights: informative cells weigh more. The pooled vector is unchanged.
_base_ = "./smartclip-b16_keep-both_1024-3e_coco.py"

towers = dict(saliency=True)
model = dict(towers=towers)

# Keeping boxes with learned weights of cells: what tells a region counts more in its mean. The pooled vector has none.
_base_ = "./smartclip-b16_keep-both_1024-3e_coco.py"

towers = dict(saliency=True)
model = dict(towers=towers)

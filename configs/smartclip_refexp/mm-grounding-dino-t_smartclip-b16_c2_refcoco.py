# c2: as c1, with everything trained; SmartCLIP's text side stays as it is.
_base_ = "./mm-grounding-dino-t_smartclip-b16_c1_refcoco.py"

model = dict(trained="all")

# The c1 config with all of MM-Grounding-DINO trained as well; SmartCLIP's text tower stays frozen.
_base_ = "./mm-grounding-dino-t_smartclip-b16_c1_refcoco.py"

model = dict(trained="all")

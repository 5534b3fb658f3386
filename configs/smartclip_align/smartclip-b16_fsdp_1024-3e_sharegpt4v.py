# Parameters, gradients and optimizer state shared out over the cards (FSDP, through MMEngine's FlexibleRunner). As one
# unit: the loss calls parts of the towers, which finer units would not gather.
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

strategy = dict(type="FSDPStrategy")

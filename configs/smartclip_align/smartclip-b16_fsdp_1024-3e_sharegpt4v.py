# Parameters, gradients and optimizer state sharded over GPUs (FSDP with MMEngine's FlexibleRunner). The model is one
# unit, because the loss calls submodules of the towers, whose parameters smaller units would not gather.
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

strategy = dict(type="FSDPStrategy")

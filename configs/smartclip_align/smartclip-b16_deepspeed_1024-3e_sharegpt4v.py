# ZeRO stage 2 with MMEngine's FlexibleRunner; requires the deepspeed package and CUDA devices.
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

strategy = dict(type="DeepSpeedStrategy", bf16=dict(enabled=True), zero_optimization=dict(stage=2))
optim_wrapper = dict(type="DeepSpeedOptimWrapper")

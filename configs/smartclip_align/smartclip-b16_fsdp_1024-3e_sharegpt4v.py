# Parameters, gradients and optimizer state shared out over the cards (FSDP, through MMEngine's FlexibleRunner).
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

strategy = dict(
    type="FSDPStrategy",
    model_wrapper=dict(auto_wrap_policy=dict(type="torch.distributed.fsdp.wrap.size_based_auto_wrap_policy")),
)

# The sparsity weight ramps up over the first half of the run.
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

custom_hooks = [*_base_.custom_hooks, dict(type="SparsityRampHook", end=1800)]

# RefCOCO (UNC), one box per sentence, 384 px.
_base_ = [
    "../_base_/models/referring_b16.py",
    "../_base_/datasets/refcoco.py",
    "../_base_/schedules/clip_vg_110e.py",
    "../_base_/default_runtime.py",
]

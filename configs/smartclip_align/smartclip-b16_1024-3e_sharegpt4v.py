# SmartCLIP's released training stage. From CLIP: --cfg-options towers.checkpoint=ViT-B-16.pt
_base_ = [
    "../_base_/models/smartclip_alignment_b16.py",
    "../_base_/datasets/sharegpt4v.py",
    "../_base_/schedules/smartclip_3e.py",
]

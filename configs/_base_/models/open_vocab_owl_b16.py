# OWL-ViT architecture: trained tower, one box and one class vector per patch token (arXiv 2205.06230).
_base_ = "./clip_preprocessor.py"

towers = dict(checkpoint=None, arch="SmartCLIP-B-16", seed=0)
model = dict(
    type="OpenVocabOWL",
    data_preprocessor={{_base_.data_preprocessor}},
    policy=dict(mask_mode="hard"),
    backbone=dict(type="SmartCLIPViT", towers=towers, out_indices=(11,), frozen=False, checkpointing=True),
    bbox_head=dict(type="OWLHead", in_channels=768, embed_dim=512),
    test_cfg=dict(score_thr=0.0, max_per_img=300),
)
custom_hooks = [dict(type="VocabularyHook", towers=towers, templates="vild_63")]

# MM-Grounding-DINO-T with a sentence-level masked cosine added to its logits; only that branch is trained.
# load_from: the released MM-Grounding-DINO-T weights; towers.checkpoint: SmartCLIP. Requires the transformers package.
_base_ = [
    "mmdet::mm_grounding_dino/refcoco/grounding_dino_swin-t_finetune_8xb4_5e_refcoco.py",
    "../_base_/smartclip_runtime.py",
]
towers = dict(checkpoint=None, arch="SmartCLIP-B-16", seed=0)
model = dict(type="SmartCLIPGroundingDINO", towers=towers, mask_mode="hard", trained="branch")

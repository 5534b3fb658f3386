# F-ViT architecture: frozen tower, four taps, FPN, class-agnostic RPN, open-vocabulary box head (arXiv 2310.01403).
_base_ = "./clip_preprocessor.py"

# With checkpoint=None the architecture is initialised at random.
towers = dict(checkpoint=None, arch="SmartCLIP-B-16", seed=0)
norm_cfg = dict(type="SyncBN")
width = 768
embed_dim = 512

model = dict(
    type="OpenVocabRCNN",
    data_preprocessor={{_base_.data_preprocessor}},
    policy=dict(mask_mode="hard", fusion="f_vit", temperature=50.0, dense_temperature=75.0, background_weight=0.6),
    backbone=dict(type="SmartCLIPViT", towers=towers, out_indices=(3, 5, 7, 11), frozen=True),
    neck=[
        dict(type="TapPyramid", in_channels=width, norm_cfg=norm_cfg),
        dict(type="FPN", in_channels=[width] * 4, out_channels=256, num_outs=5, norm_cfg=norm_cfg),
    ],
    rpn_head=dict(
        type="RPNHead",
        in_channels=256,
        feat_channels=256,
        num_convs=2,
        anchor_generator=dict(type="AnchorGenerator", scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True),
        loss_bbox=dict(type="L1Loss"),
    ),
    roi_head=dict(
        type="OpenVocabRoIHead",
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
        ),
        bbox_head=dict(type="OpenVocabBBoxHead", embed_dim=embed_dim, norm_cfg=norm_cfg),
        dense_stride=16,
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type="MaxIoUAssigner",
                pos_iou_thr=0.7,
                neg_iou_thr=0.3,
                min_pos_iou=0.3,
                match_low_quality=True,
                ignore_iof_thr=-1,
            ),
            sampler=dict(type="RandomSampler", num=256, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(nms_pre=2000, max_per_img=1000, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            assigner=dict(
                type="MaxIoUAssigner",
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5,
                match_low_quality=False,
                ignore_iof_thr=-1,
            ),
            sampler=dict(type="RandomSampler", num=512, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=2000, max_per_img=1000, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.01, nms_iou=0.4, max_per_img=100),
    ),
)
custom_hooks = [dict(type="VocabularyHook", towers=towers, templates="vild_63")]

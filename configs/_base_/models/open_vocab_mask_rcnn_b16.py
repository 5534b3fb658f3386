# F-ViT for OV-LVIS (CLIPSelf, arXiv 2310.01403): class-agnostic mask head, RPN with norm layers, 300 detections.
_base_ = "./open_vocab_rcnn_b16.py"
norm_cfg = dict(type="SyncBN")
model = dict(
    data_preprocessor=dict(pad_mask=True),
    policy=dict(dense_temperature=50.0, beta=0.6, background_weight=0.9),
    rpn_head=dict(type="NormedRPNHead", norm_cfg=norm_cfg),
    roi_head=dict(
        mask_head=dict(
            type="FCNMaskHead",
            num_convs=4,
            in_channels=256,
            conv_out_channels=256,
            num_classes=1,
            class_agnostic=True,
            norm_cfg=norm_cfg,
            loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(rcnn=dict(mask_size=28)),
    test_cfg=dict(rcnn=dict(score_thr=1e-4, nms_iou=0.5, max_per_img=300, mask_thr_binary=0.5)),
)

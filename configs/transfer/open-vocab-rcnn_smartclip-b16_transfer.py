# An OV-LVIS detector on another COCO-format data set, without training: one alpha for all classes, head temperature
# fixed at 50, dense temperature 120, no mask head (F-ViT, arXiv 2310.01403). Class names are read from the annotations.
_base_ = "../ov_lvis/open-vocab-mask-rcnn_smartclip-b16_8xb8-48e_ov-lvis.py"
data_root = "data/coco/"
model = dict(
    policy=dict(alpha=0.2, beta=0.2, temperature=50.0, dense_temperature=120.0),
    roi_head=dict(mask_head=None, bbox_head=dict(learn_temperature=False)),
    test_cfg=dict(rcnn=dict(max_per_img=100)),
)
ann_file = "annotations/instances_val2017.json"
train_dataloader = train_cfg = optim_wrapper = param_scheduler = None
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="OpenVocabCocoDataset",
        data_root=data_root,
        ann_file=ann_file,
        data_prefix=dict(img="val2017/"),
        vocabulary="annotations",
        test_mode=True,
        pipeline={{_base_.test_pipeline}},
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type="OpenVocabMetric", data_root=data_root, ann_file=ann_file, protocol="coco")
test_evaluator = val_evaluator

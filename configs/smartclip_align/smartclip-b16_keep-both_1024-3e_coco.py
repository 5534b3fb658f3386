# Not in the paper. COCO captions with boxes; dense regions are distilled from crops and matched with their class names.
# Only the 48 base classes have boxes here, so that OV-COCO stays valid.
_base_ = "./smartclip-b16_keep-crops_1024-3e_sharegpt4v.py"

data_root = "data/coco/"
model = dict(region_contrast=dict(weight=1.0, images=64, scale=50.0))
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file="annotations/captions_train2017.json",
        images=dict(folder="train2017"),
        texts=dict(policy="short"),
        skip=0,
        regions=dict(file="annotations/instances_train2017_seen_2.json", template="a photo of a {}."),
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file="annotations/captions_val2017.json",
        images=dict(folder="val2017"),
        indices=None,
    )
)
test_dataloader = val_dataloader

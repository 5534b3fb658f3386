# RefCOCO, RefCOCO+ and RefCOCOg together. Training images of one are val or test images of another; the list of these,
# written by tools/data/check_leakage.py --leaked, is excluded.
_base_ = "./referring_smartclip-b16-384_refcoco.py"

train_dataloader = dict(
    dataset=dict(
        ann_file=["refer/refcoco/refs(unc).p", "refer/refcoco+/refs(unc).p", "refer/refcocog/refs(umd).p"],
        without="refer/leaked_images.txt",
    )
)

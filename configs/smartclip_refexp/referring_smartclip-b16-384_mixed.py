# RefCOCO, RefCOCO+ and RefCOCOg together. Images of one set's training are in another's val or test: the list of those
# that tools/data/check_leakage.py --leaked writes is left out.
_base_ = "./referring_smartclip-b16-384_refcoco.py"

train_dataloader = dict(
    dataset=dict(
        ann_file=["refer/refcoco/refs(unc).p", "refer/refcoco+/refs(unc).p", "refer/refcocog/refs(umd).p"],
        without="refer/leaked_images.txt",
    )
)

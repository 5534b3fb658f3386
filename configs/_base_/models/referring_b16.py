# A light head (as in CLIP-VG, arXiv 2305.08685) on frozen towers; masks are added through a gate initialised to zero.
towers = dict(checkpoint=None, arch="SmartCLIP-B-16", seed=0)
model = dict(
    type="SmartCLIPReferring",
    towers=towers,
    image_size=384,
    out_indices=(0, 3, 7, 11),
    mask_mode="hard",
    head=dict(dim=512, layers=6, heads=8, feedforward=2048, queries=1, gate=True),
    # One box per sentence: CLIP-VG's L1 and GIoU losses with equal weights.
    loss_weights=dict(bbox=1.0, giou=1.0),
)

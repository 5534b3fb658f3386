r"""Region probe: classify ground-truth boxes with the towers alone, for each view, dense mode and mask mode.

    smartclip-det probe --encoder smartclip_b16.pt --ann instances_val2017.json --images val2017 \
        --split-file split.json --dense-size 640
    smartclip-det probe --encoder work_dirs/toy/smartclip/align/epoch_16.pth \
        --ann data/toy/annotations/instances_val.json --images data/toy/images/val --templates "{article} {}" \
        --split-file data/toy/annotations/split.json --dense-size 128
    smartclip-det probe --open-clip EVA02-B-16 --weights eva02_b16.safetensors --image-size 448 \
        --ann instances_val2017.json --images val2017 --mask-modes off

The split file is JSON with "base" and "novel" lists of names; without it, all classes of the annotations form one
group.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import (
    Old,
    add_crop_context,
    add_dense_size,
    add_device,
    add_encoder,
    add_out,
    add_templates,
    add_views,
    add_vocabulary,
    encoder_source,
    filled,
    templates_of,
)
from smartclip_det.core.mask_modes import MASK_MODES
from smartclip_det.core.words import DENSE_MODES, POOLINGS, TEXT_NORMS

OLD = (Old("--checkpoint", "--encoder"),)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument_group("images and boxes").add_argument
    add("--ann", required=True, help="COCO annotations")
    add("--images", required=True, help="image folder")
    add("--split-file", type=Path, help='json {"base": [...], "novel": [...]}')

    encoder = parser.add_argument_group("encoder and region vectors")
    add = encoder.add_argument
    add_encoder(encoder, open_clip=True)
    add_device(encoder)
    add_views(encoder, default=("crop", "dense"), choices=("crop", "dense", "mask"), several="probed one by one")
    add(
        "--dense-modes",
        nargs="+",
        default=["value"],
        choices=DENSE_MODES,
        help="modes of the last block for the dense map",
    )
    add_dense_size(encoder)
    add(
        "--poolings",
        nargs="+",
        default=["own"],
        choices=POOLINGS,
        help="own: cells of a region are weighted by their norm; unit: equally",
    )
    add("--fit", choices=["pad", "squash"], default="pad", help="how images are fitted to the dense input")
    add_crop_context(encoder)

    vocabulary = parser.add_argument_group("vocabulary")
    add_vocabulary(vocabulary, default="those of the split or annotation file")
    add_templates(vocabulary)

    add = parser.add_argument_group("scores").add_argument
    add("--mask-modes", nargs="+", default=["hard", "off"], choices=MASK_MODES, help="mask modes to score")
    add("--text-norm", default="full", choices=TEXT_NORMS, help="masked: for towers trained with it")

    output = parser.add_argument_group("output")
    add_out(output, "work_dirs/region_probe.json", "JSON output")


def run(args: argparse.Namespace) -> None:
    """Run the probe and print a table."""
    from smartclip_det.apis.probing import ProbeOptions, probe

    accuracy = probe(filled(ProbeOptions, args, encoder=encoder_source(args), templates=templates_of(args.templates)))
    print(f"{'accuracy':24s}" + "".join(f"{m:>10s}" for m in args.mask_modes))
    for group, views in accuracy.items():
        for view, values in views.items():
            cells = "".join(f"{values[m]:10.3f}" if values[m] >= 0 else f"{'n/a':>10s}" for m in args.mask_modes)
            print(f"{group + ' ' + view:24s}{cells}")
    print(f"written: {args.out}")

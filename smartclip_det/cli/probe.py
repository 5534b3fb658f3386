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

from smartclip_det.cli.options import Old, add_device, add_encoder, add_out, encoder_source, templates_of
from smartclip_det.core.mask_modes import MASK_MODES
from smartclip_det.core.words import DENSE_MODES, POOLINGS, TEXT_NORMS

OLD = (Old("--checkpoint", "--encoder"),)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add_encoder(parser, open_clip=True)
    add("--ann", required=True, help="COCO annotations")
    add("--images", required=True, help="image folder")
    add("--split-file", type=Path, help='json {"base": [...], "novel": [...]}')
    add(
        "--vocabulary",
        help="candidate class names: a known vocabulary, .txt or .json; default: those of the split or annotation file",
    )
    add("--templates", nargs="+", default=["photo"], help="a template set, or custom templates")
    add(
        "--views",
        nargs="+",
        default=["crop", "dense"],
        choices=["crop", "dense", "mask"],
        help="how region vectors are computed",
    )
    add(
        "--dense-modes",
        nargs="+",
        default=["value"],
        choices=DENSE_MODES,
        help="modes of the last block for the dense map",
    )
    add(
        "--poolings",
        nargs="+",
        default=["own"],
        choices=POOLINGS,
        help="own: cells of a region are weighted by their norm; unit: equally",
    )
    add("--mask-modes", nargs="+", default=["hard", "off"], choices=MASK_MODES, help="mask modes to score")
    add("--text-norm", default="full", choices=TEXT_NORMS, help="masked: for towers trained with it")
    add("--dense-size", type=int, default=0, help="side of the dense input in pixels; 0: the tower's input size")
    add("--fit", choices=["pad", "squash"], default="pad", help="how images are fitted to the dense input")
    add("--crop-context", type=float, default=1.2, help="crop side relative to the longer box side")
    add_device(parser)
    add_out(parser, "work_dirs/region_probe.json", "JSON output")


def run(args: argparse.Namespace) -> None:
    """Run the probe and print a table."""
    from smartclip_det.apis.probing import ProbeOptions, probe

    accuracy = probe(
        ProbeOptions(
            ann=args.ann,
            images=args.images,
            encoder=encoder_source(args),
            split_file=args.split_file,
            vocabulary=args.vocabulary,
            templates=templates_of(args.templates),
            views=args.views,
            dense_modes=args.dense_modes,
            poolings=args.poolings,
            mask_modes=args.mask_modes,
            text_norm=args.text_norm,
            dense_size=args.dense_size,
            fit=args.fit,
            crop_context=args.crop_context,
            device=args.device,
            out=args.out,
        )
    )
    print(f"{'accuracy':24s}" + "".join(f"{m:>10s}" for m in args.mask_modes))
    for group, views in accuracy.items():
        for view, values in views.items():
            cells = "".join(f"{values[m]:10.3f}" if values[m] >= 0 else f"{'n/a':>10s}" for m in args.mask_modes)
            print(f"{group + ' ' + view:24s}{cells}")
    print(f"written: {args.out}")

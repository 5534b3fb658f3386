#!/usr/bin/env python
"""Region probe: ground-truth boxes classified by the towers alone, by view, dense mode and mask mode.

    python tools/analysis/region_probe.py --checkpoint smartclip_b16.pt --ann instances_val2017.json --images val2017 \
        --split-file split.json --dense-size 640
    python tools/analysis/region_probe.py --checkpoint work_dirs/toy/smartclip/align/epoch_16.pth \
        --ann data/toy/annotations/instances_val.json --images data/toy/images/val --templates "{article} {}" \
        --split-file data/toy/annotations/split.json --dense-size 128
    python tools/analysis/region_probe.py --open-clip EVA02-B-16 --weights eva02_b16.safetensors --image-size 448 \
        --ann instances_val2017.json --images val2017 --mask-modes off

The split file is json with "base" and "novel" lists of names; without it, every class of the annotations is one group.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.core.similarity import MASK_MODES
from smartclip_det.formats.annotations import load_ground_truth
from smartclip_det.formats.class_splits import ov_coco_split
from smartclip_det.models.regions import RegionEncoder
from smartclip_det.models.towers import DENSE_MODES
from smartclip_det.models.towers.source import load_encoder
from smartclip_det.models.vocabulary import build_bank, resolve_names
from smartclip_det.probing.region_probe import probe_accuracy, probe_regions
from smartclip_det.protocols.stamp import file_hash, protocol_stamp, write_results
from smartclip_det.utils.cli import run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="towers, any readable layout")
    source.add_argument("--arch", help="random weights of a named architecture: a control")
    source.add_argument("--open-clip", help="a SigLIP, EVA02 or other timm model of open_clip, by its name")
    parser.add_argument("--weights", help="weights of --open-clip; without it they are random")
    parser.add_argument("--tokenizer", help="folder of the tokenizer of --open-clip, where it is not open_clip's own")
    parser.add_argument("--image-size", type=int, default=0, help="input side of --open-clip; 0: its own")
    parser.add_argument("--ann", required=True, help="COCO annotations")
    parser.add_argument("--images", required=True, help="folder of file_name")
    parser.add_argument("--split-file", type=Path, help='json {"base": [...], "novel": [...]}')
    parser.add_argument("--vocabulary", help="names to classify among; default: the split's, or the file's")
    parser.add_argument("--templates", nargs="+", default=["photo"], help="a template set or own templates")
    parser.add_argument("--views", nargs="+", default=["crop", "dense"], choices=["crop", "dense", "mask"])
    parser.add_argument("--dense-modes", nargs="+", default=["value"], choices=DENSE_MODES)
    parser.add_argument("--mask-modes", nargs="+", default=["hard", "off"], choices=MASK_MODES)
    parser.add_argument("--dense-size", type=int, default=0, help="side of the dense input in pixels; 0: the tower's")
    parser.add_argument("--fit", choices=["pad", "squash"], default="pad")
    parser.add_argument("--crop-context", type=float, default=1.2, help="side of crops over the longer side of boxes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/region_probe.json"))
    return parser.parse_args()


def main() -> None:
    """Probe, print a table, write JSON."""
    args = parse_args()
    truth = load_ground_truth(args.ann)
    groups = dict(zip(("base", "novel"), ov_coco_split(args.split_file)[:2], strict=True)) if args.split_file else {}
    names = resolve_names(args.vocabulary) if args.vocabulary else [n for g in groups.values() for n in g]
    names = names or list(truth.categories.values())
    source = {"checkpoint": args.checkpoint} if args.checkpoint else {"arch": args.arch}
    if args.open_clip:
        source = {"open_clip": args.open_clip, "checkpoint": args.weights, "tokenizer": args.tokenizer,
                  "image_size": args.image_size}  # fmt: skip
    towers = load_encoder(source, args.device)
    encoder = RegionEncoder(towers, dense_size=args.dense_size, fit=args.fit, crop_context=args.crop_context)
    templates = args.templates[0] if len(args.templates) == 1 and "{" not in args.templates[0] else args.templates
    bank = build_bank(towers, names, templates=templates)
    regions = probe_regions(encoder, truth, args.images, names, views=args.views, dense_modes=args.dense_modes)
    accuracy = probe_accuracy(regions, bank, groups, args.mask_modes)
    stamp = protocol_stamp(
        "region_probe", ann_sha256=file_hash(args.ann), checkpoint_hash=towers.checkpoint_hash, classes=len(names),
        boxes=len(regions.labels), templates=templates, dense_size=encoder.dense_size, fit=args.fit,
        crop_context=args.crop_context, policy=ScoringPolicy().to_dict(), unit="box, best of all classes",
    )  # fmt: skip
    print_table(accuracy, args.mask_modes)
    write_results(args.out, stamp, accuracy)
    print(f"written: {args.out}")


def print_table(accuracy: dict[str, dict[str, dict[str, float]]], modes: list[str]) -> None:
    """One line per group and view, one column per mask mode."""
    print(f"{'accuracy':24s}" + "".join(f"{m:>10s}" for m in modes))
    for group, views in accuracy.items():
        for view, values in views.items():
            cells = "".join(f"{values[m]:10.3f}" if values[m] >= 0 else f"{'n/a':>10s}" for m in modes)
            print(f"{group + ' ' + view:24s}{cells}")


if __name__ == "__main__":
    run_tool(main)

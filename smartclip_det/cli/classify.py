"""Zero-shot classification on a folder of class folders (ImageNet layout) or on CIFAR's binary files.

    smartclip-det classify data/imagenet/val --names imagenet_names.txt --encoder smartclip_b16.pt
    smartclip-det classify data/cifar-100-binary --encoder smartclip_b16.pt --templates clip_80
    smartclip-det classify photos/ --encoder smartclip_b16.pt --device cuda

Scored without masks (as published) and, for towers with a mask network, with masks and with both mask controls.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import Old, add_encoder, add_out, add_square_images, encoder_source, filled
from smartclip_det.core.words import TEMPLATE_SETS
from smartclip_det.utils.cli import format_metrics

OLD = (Old("--checkpoint", "--encoder"),)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("folder", type=Path, help="folder with CLASS/IMAGE files, or with CIFAR binary files")
    add("--names", help="class names of the folders: text, json or csv; synonyms are averaged")
    add_encoder(parser)
    add(
        "--templates",
        default="clip_80",
        choices=TEMPLATE_SETS,
        help="prompt templates; the mean embedding of a class is scored",
    )
    add_square_images(parser)
    add_out(parser, None, "metrics JSON; default work_dirs/classify_FOLDER.json")


def run(args: argparse.Namespace) -> None:
    """Classify, print the metrics and the output path."""
    from smartclip_det.apis.classification import ClassifyOptions, classify

    out = args.out or Path(f"work_dirs/classify_{args.folder.resolve().name}.json")
    result = classify(filled(ClassifyOptions, args, towers=encoder_source(args), out=out))
    if result.repeated:
        print(
            f"note: {result.repeated} classes share a name with another class; as in published evaluations, the "
            "first one is predicted."
        )
    print(format_metrics(result.metrics))
    print(f"written: {out}")

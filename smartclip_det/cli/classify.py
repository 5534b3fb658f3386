"""Zero-shot classification of a folder of class folders (ImageNet's layout), or of CIFAR's binary files.

    smartclip-det classify data/imagenet/val --names imagenet_names.txt --encoder smartclip_b16.pt
    smartclip-det classify data/cifar-100-binary --encoder smartclip_b16.pt --templates clip_80
    smartclip-det classify photos/ --encoder smartclip_b16.pt --device cuda

Scored plain (as published) and, for towers with a mask network, with masks and both controls.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import Old, add_device, add_encoder, add_out, encoder_source
from smartclip_det.core.words import FITS, TEMPLATE_SETS
from smartclip_det.utils.cli import format_metrics

OLD = (Old("--checkpoint", "--encoder"),)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add("folder", type=Path, help="CLASS/IMAGE, or CIFAR binary files")
    add("--names", help="names of the folders: text, json or csv; synonyms are averaged")
    add_encoder(parser)
    add("--templates", default="clip_80", choices=TEMPLATE_SETS, help="prompts of a name; their mean is scored")
    add("--fit", choices=FITS, default="crop", help="how an image becomes a square")
    add("--batch-size", type=int, default=64, help="images of one pass")
    add("--workers", type=int, default=4, help="processes that read images")
    add_device(parser)
    add_out(parser, None, "JSON of the metrics; default work_dirs/classify_FOLDER.json")


def run(args: argparse.Namespace) -> None:
    """Measure, print, say what was written."""
    from smartclip_det.apis.classification import ClassifyOptions, classify

    out = args.out or Path(f"work_dirs/classify_{args.folder.resolve().name}.json")
    found = classify(
        ClassifyOptions(
            folder=args.folder,
            towers=encoder_source(args),
            names=args.names,
            templates=args.templates,
            fit=args.fit,
            batch_size=args.batch_size,
            workers=args.workers,
            device=args.device,
            out=out,
        )
    )
    if found.repeated:
        print(f"note: {found.repeated} classes repeat another's name; as published, the first of them is answered.")
    print(format_metrics(found.metrics))
    print(f"written: {out}")

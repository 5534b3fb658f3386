"""Make the OV-LVIS protocol files (866 base, 337 novel classes) from the official LVIS v1 annotations.

    smartclip-det data split-ov-lvis --train lvis_v1_train.json --val lvis_v1_val.json --out data/lvis

``lvis_v1_train_norare.json`` has no box of a rare class and lists all classes; ``lvis_v1_minival.json`` holds the
validation images that are COCO val2017 images. Files are streamed: memory stays small whatever their size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.core.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("--train", type=Path, help="lvis_v1_train.json")
    parser.add_argument("--val", type=Path, help="lvis_v1_val.json")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; what is done there is kept")


def run(args: argparse.Namespace) -> None:
    """Write the files that can be made from what is given."""
    if not args.train and not args.val:
        raise UserError("Give --train, --val or both.")
    from smartclip_det.datasets.protocol_files import (
        AnnotationStream,
        described,
        lvis_minival,
        make_files,
        ov_lvis_train,
    )

    done = []
    if args.train:
        stream = AnnotationStream(args.train)
        done += make_files(stream, ov_lvis_train(list(stream.entries("categories")), str(args.train)), args.out)
    if args.val:
        stream = AnnotationStream(args.val)
        done += make_files(stream, lvis_minival(list(stream.entries("categories"))), args.out)
    for entry in done:
        print(described(entry, args.out))

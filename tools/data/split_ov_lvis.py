#!/usr/bin/env python
"""Make the OV-LVIS protocol files (866 base, 337 novel classes) from the official LVIS v1 annotations.

    python tools/data/split_ov_lvis.py --train lvis_v1_train.json --val lvis_v1_val.json --out data/lvis

``lvis_v1_train_norare.json`` has no box of a rare class and lists all classes; ``lvis_v1_minival.json`` holds the
validation images that are COCO val2017 images. Files are streamed: memory stays small whatever their size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.protocol_files import (
    AnnotationStream,
    described,
    lvis_minival,
    make_files,
    ov_lvis_train,
)
from smartclip_det.utils.cli import run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="lvis_v1_train.json")
    parser.add_argument("--val", type=Path, help="lvis_v1_val.json")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; what is done there is kept")
    return parser.parse_args()


def main() -> None:
    """Write the files that can be made from what is given."""
    args = parse_args()
    if not args.train and not args.val:
        raise UserError("Give --train, --val or both.")
    done = []
    if args.train:
        stream = AnnotationStream(args.train)
        done += make_files(stream, ov_lvis_train(list(stream.entries("categories")), str(args.train)), args.out)
    if args.val:
        stream = AnnotationStream(args.val)
        done += make_files(stream, lvis_minival(list(stream.entries("categories"))), args.out)
    for entry in done:
        print(described(entry, args.out))


if __name__ == "__main__":
    run_tool(main)

#!/usr/bin/env python
"""Make the OV-COCO protocol files (48 base, 17 novel classes) from the official COCO 2017 annotations.

    python tools/data/split_ov_coco.py --train instances_train2017.json --val instances_val2017.json --out data/coco/ov

From the full official files come 107,761 training and 4,836 validation images; other counts are refused. The files
have the names and the content that F-ViT, CORA and RegionCLIP use; configs/ov_coco needs only the official ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.core.errors import UserError
from smartclip_det.datasets.protocol_files import (
    AnnotationStream,
    described,
    make_files,
    ov_coco_train,
    ov_coco_val,
)
from smartclip_det.utils.cli import run_tool


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="instances_train2017.json")
    parser.add_argument("--val", type=Path, help="instances_val2017.json")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; what is done there is kept")
    return parser.parse_args()


def main() -> None:
    """Write the files that can be made from what is given."""
    args = parse_args()
    if not args.train and not args.val:
        raise UserError("Give --train, --val or both.")
    sources = [(args.train, ov_coco_train()), (args.val, ov_coco_val())]
    for path, rules in sources:
        if path:
            for entry in make_files(AnnotationStream(path), rules, args.out):
                print(described(entry, args.out))


if __name__ == "__main__":
    run_tool(main)

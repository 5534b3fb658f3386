"""Make the OV-COCO protocol files (48 base, 17 novel classes) from the official COCO 2017 annotations.

    smartclip-det data split-ov-coco --train instances_train2017.json --val instances_val2017.json --out data/coco/ov

From the full official files come 107,761 training and 4,836 validation images; other counts are refused. The files
have the names and the content that F-ViT, CORA and RegionCLIP use; configs/ov_coco needs only the official ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.core.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument("--train", type=Path, help="instances_train2017.json")
    parser.add_argument("--val", type=Path, help="instances_val2017.json")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; what is done there is kept")


def run(args: argparse.Namespace) -> None:
    """Write the files that can be made from what is given."""
    if not args.train and not args.val:
        raise UserError("Give --train, --val or both.")
    from smartclip_det.datasets.protocol_files import (
        AnnotationStream,
        described,
        make_files,
        ov_coco_train,
        ov_coco_val,
    )

    sources = [(args.train, ov_coco_train()), (args.val, ov_coco_val())]
    for path, rules in sources:
        if path:
            for entry in make_files(AnnotationStream(path), rules, args.out):
                print(described(entry, args.out))

"""Make the OV-COCO protocol files (48 base, 17 novel classes) from the official COCO 2017 annotations.

    smartclip-det data split-ov-coco --train instances_train2017.json --val instances_val2017.json --out data/coco/ov

The full official files give 107,761 training and 4,836 validation images; any other count is an error. File names and
content are those used by F-ViT, CORA and RegionCLIP; configs/ov_coco only needs the official files.
"""

from __future__ import annotations

import argparse

from smartclip_det.cli.data.official_files import add_sources, check_sources


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add_sources(parser, "instances_train2017.json", "instances_val2017.json")


def run(args: argparse.Namespace) -> None:
    """Write the protocol files of the given annotations."""
    check_sources(args)
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

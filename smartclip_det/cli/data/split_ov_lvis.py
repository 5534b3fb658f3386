"""Make the OV-LVIS protocol files (866 base, 337 novel classes) from the official LVIS v1 annotations.

    smartclip-det data split-ov-lvis --train lvis_v1_train.json --val lvis_v1_val.json --out data/lvis

``lvis_v1_train_norare.json`` has no boxes of rare classes but lists all classes; ``lvis_v1_minival.json`` has the
validation images that are in COCO val2017. Files are streamed, so memory use does not grow with their size.
"""

from __future__ import annotations

import argparse

from smartclip_det.cli.data.official_files import add_sources, check_sources


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add_sources(parser, "lvis_v1_train.json", "lvis_v1_val.json")


def run(args: argparse.Namespace) -> None:
    """Write the protocol files of the given annotations."""
    check_sources(args)
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

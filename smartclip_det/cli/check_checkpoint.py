"""Check that a checkpoint reproduces its published numbers. The verdict goes to JSON and to the exit code.

    smartclip-det check checkpoint smartclip-b16 smartclip_b16.pt coco-5k=data/coco sharegpt4v-1k=data/sharegpt4v
    smartclip-det check checkpoint clip-b16 ViT-B-16.pt coco-5k=data/coco imagenet=data/imagenet/val --device cuda

Each SET=FOLDER is measured as by smartclip-det retrieve or classify, with plain scoring as published. Exit code 0: all
within tolerance; 1: at least one outside; 2: the measurement failed.
"""

from __future__ import annotations

import argparse

from smartclip_det.cli.models import verdicts
from smartclip_det.cli.options import add_out, add_published_sets, filled, sets_of
from smartclip_det.protocols.published import PUBLISHED


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("model", choices=PUBLISHED, help="published model")
    add("checkpoint", help="checkpoint file or model name")
    add("sets", nargs="+", metavar="SET=FOLDER", help="set to measure and its folder")
    add_published_sets(parser)
    add_out(parser, "work_dirs/verify_checkpoint.json", "JSON output; per-set results go to the same folder")


def run(args: argparse.Namespace) -> int:
    """Verify, print a table and return the exit code."""
    folders = sets_of(args.sets)
    from smartclip_det.apis.checking import VerifyOptions, verify_checkpoint

    passed, rows = verify_checkpoint(filled(VerifyOptions, args, sets=folders))
    print(verdicts(rows))
    print(f"{'PASSED' if passed else 'NOT PASSED'}{' (incomplete sets)' if args.partial else ''}: {args.out}")
    return 0 if passed else 1

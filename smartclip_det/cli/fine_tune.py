"""Fine-tune a detector on your own boxes, and report what was learned and what zero-shot ability was kept.

    smartclip-det fine-tune CONFIG CHECKPOINT --ann train.json --images train/ --val-ann val.json --val-images val/
    smartclip-det fine-tune --encoder smartclip-b16 --ann train.json --images train/ --val-ann val.json
    smartclip-det data to-coco yolo --data data.yaml --split train --out train.json    # from YOLO or VOC labels

The vocabulary is that of the annotation file. Tested before and after: your validation images, and CONFIG's own test
set (its old classes; --no-old leaves it out). --blend 0.5 also tests the mean of old and new weights (WiSE-FT, arXiv
2109.01903), which often keeps most of both. Writes OUT/config.py, report.md and report.json; what is done is not done
again: run the same command to go on.

With --encoder towers alone are the start, without anybody's heads: CONFIG is one that came with the package unless you
give it, its heads begin at random, and the report has no column of before.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import add_cfg_options, add_out


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add("config", nargs="?", help="config of the detector to start from: a file, or the name of one of the package")
    add("checkpoint", nargs="?", help="its weights")
    add("--encoder", help="start from towers alone: a name of public weights (smartclip-det models), or a file")
    add("--ann", type=Path, required=True, help="COCO json of your training boxes")
    add("--images", type=Path, required=True, help="folder of their images")
    add("--val-ann", type=Path, required=True, help="COCO json of your validation boxes")
    add("--val-images", type=Path, help="folder of their images; default: --images")
    add("--epochs", type=int, default=12, help="epochs of training")
    add("--lr", type=float, help="learning rate; default: a tenth of the config's own; with --encoder its own")
    add("--batch-size", type=int, default=4, help="images of a step")
    add("--blend", type=float, default=0.0, help="share of new weights in a blend to test; 0: none")
    add("--no-old", action="store_true", help="do not test on the config's own test set")
    add_out(parser, "work_dirs/fine_tune", "folder of everything that is written")
    add_cfg_options(parser, "overrides for every step")


def run(args: argparse.Namespace) -> None:
    """Fine-tune, and print the report."""
    from smartclip_det.apis.fine_tuning import FineTuneOptions, fine_tune

    given = {k: v for k, v in vars(args).items() if k != "no_old"}
    print(fine_tune(FineTuneOptions(**given, old=not args.no_old)))
    print(f"written: {args.out / 'report.md'} and report.json")

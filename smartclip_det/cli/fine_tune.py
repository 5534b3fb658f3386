"""Fine-tune a detector on your own boxes, and report both the gain and how much zero-shot ability was lost.

    smartclip-det fine-tune CONFIG CHECKPOINT --ann train.json --images train/ --val-ann val.json --val-images val/
    smartclip-det fine-tune --encoder smartclip-b16 --ann train.json --images train/ --val-ann val.json
    smartclip-det data to-coco yolo --data data.yaml --split train --out train.json    # from YOLO or VOC labels

The vocabulary is that of the annotation file. Before and after training, the detector is tested on your validation
images and on CONFIG's own test set (its old classes; skip with --no-old). --blend 0.5 also tests the average of old and
new weights (WiSE-FT, arXiv 2109.01903), which often keeps most of both. Writes OUT/config.py, report.md and
report.json. Finished steps are not repeated: run the same command again to resume.

With --encoder, training starts from the towers alone: CONFIG defaults to a packaged config, heads are randomly
initialised, and the report has no "before" column.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import add_cfg_options, add_out


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("config", nargs="?", help="config of the initial detector: a file, or the name of a packaged config")
    add("checkpoint", nargs="?", help="its checkpoint")
    add("--encoder", help="start from towers alone: a file, or a name of public weights (smartclip-det models)")
    add("--ann", type=Path, required=True, help="COCO json of your training boxes")
    add("--images", type=Path, required=True, help="folder of the training images")
    add("--val-ann", type=Path, required=True, help="COCO json of your validation boxes")
    add("--val-images", type=Path, help="folder of the validation images; default: --images")
    add("--epochs", type=int, default=12, help="training epochs")
    add(
        "--lr",
        type=float,
        help="learning rate; default: a tenth of the config's value; with --encoder the config's value",
    )
    add("--batch-size", type=int, default=4, help="images per step")
    add("--blend", type=float, default=0.0, help="weight of the new parameters in the tested average; 0: no average")
    add("--no-old", action="store_true", help="do not test on the config's own test set")
    add_out(parser, "work_dirs/fine_tune", "output folder")
    add_cfg_options(parser, "overrides for every step")


def run(args: argparse.Namespace) -> None:
    """Fine-tune and print the report."""
    from smartclip_det.apis.fine_tuning import FineTuneOptions, fine_tune

    given = {k: v for k, v in vars(args).items() if k != "no_old"}
    print(fine_tune(FineTuneOptions(**given, old=not args.no_old)))
    print(f"written: {args.out / 'report.md'} and report.json")
